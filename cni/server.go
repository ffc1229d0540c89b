// SPDX-License-Identifier: Apache-2.0

// Package cni is the node's side of the pod network. It serves the CNI plugin over a unix socket.
//
// It owns the pods' addresses (containernetworking's host-local allocator), one veth pair and one host route per pod,
// the bridge device with the node's own address in the pod network, the nftables table `coracle` (host ports,
// masquerade) and the CNI configuration that makes the node network-ready. Pods are routed, not bridged: docs/adr/0020
// gives the reason. It never changes Services (package proxy), other hosts, or other programs' tables, routes and
// devices.
//
// Its goroutines: Run's accept loop, the loop that restores what is missing, and what follows the kernel, with four of
// netlink's; for each call one that serves it and one that notices a killed plugin; wireguard-go's where the kernel has
// no WireGuard.
package cni

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/cni/wire"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/internal/unixsocket"
)

// Names on the host.
const (
	Bridge      = "coracle0" // the device with the node's own address in the pod network
	NetworkName = "coracle"
	PluginName  = "coracle-cni"
)

// Options configure a Server. Socket, StateDir, ConfDir, PodCIDRs and ClusterCIDRs are required.
type Options struct {
	// Socket is the unix socket to which the plugin connects. Its folder is made when missing.
	Socket string
	// StateDir keeps addresses and attachments across restarts.
	StateDir string
	// ConfDir is the folder in which containerd looks for CNI configurations. The file is written only once pods can be
	// served, which makes the node network-ready.
	ConfDir string
	// PodCIDRs delivers the node's pod CIDRs, IPv4 first, once they are known and whenever they change. The last known
	// ones are used until then. See WatchPodCIDRs.
	PodCIDRs <-chan []netip.Prefix
	// Backend is the back end in a cluster without such a setting: one of clusterconfig.NetworkBackends except none.
	// Empty means the first.
	Backend string
	// Backends delivers the cluster's setting once it is known, and whenever it changes. It is empty once the setting
	// was removed. The last known one is used until then. nil means that the node uses only Backend.
	Backends <-chan string
	// Changed, when set, is called when the node starts to use its first back end, and when it changes to another one.
	// It must not block.
	Changed func()
	// Peers delivers the other nodes once they are known and whenever they change. The last known ones are used until
	// then. See WatchPeers. nil means that there are no other nodes.
	Peers <-chan []Peer
	// NodeIPs are the addresses at which others reach this node. Interface, when set, is the name of the interface to
	// other nodes' pods, or a pattern for it (path.Match). Otherwise it is the interface that has NodeIPs.
	NodeIPs   []netip.Addr
	Interface string
	// External are addresses at which other nodes reach this one, in place of the underlay's; at most one of each
	// family. Another machine has them, and translates them to the underlay's.
	External []netip.Addr
	// Report, when set, is called with the reason why this node cannot reach others' pods. It is called with nil when
	// it can again.
	Report func(error)
	// Firewalls, when set, is called whenever the list changes of other programs' firewalls that filter packets to this
	// machine and its pods. The argument is empty when there is none any more.
	Firewalls func(found string)
	// ClusterCIDRs contain all pods of the cluster. Traffic between pods keeps its addresses.
	ClusterCIDRs []netip.Prefix
	// ServiceCIDRs get a route to Bridge, so that a host without a default route can reach Services. They may be empty.
	ServiceCIDRs []netip.Prefix
	// ReservedPorts are ports of the node that the cluster itself needs. No pod gets one of them as a host port. By TCP
	// none gets what the node's own programs send to them at loopback.
	ReservedPorts []uint16
	// Port is the port at which other machines reach this one, by TCP and UDP: a firewall has to accept it.
	Port int
	// Policies, when set, admits each pod before it gets its network.
	Policies Policies
	// Logger is klog's own if it is the zero value.
	Logger klog.Logger
}

// Policies puts the rules of a pod's NetworkPolicies into effect before its first packet.
type Policies interface {
	// Admit returns when the rules for the pod are in effect. After an error the pod gets no network.
	Admit(context.Context, Sandbox) error
	// Release reports that the sandbox with that ID has no network any more, or did not get one.
	Release(id string)
}

// Sandbox is a pod's network, as Policies get it. UID is empty where the runtime or an earlier version did not send it.
type Sandbox = netinformers.Sandbox

// Sandboxes returns the sandboxes with a network on this node.
func (pn *podNetwork) Sandboxes() []Sandbox {
	var out []Sandbox
	for _, r := range pn.attachments.list() {
		if b, ok := r.sandbox(); ok {
			out = append(out, b)
		}
	}
	return out
}

// Server serves CNI calls. Make one with NewServer.
type Server struct {
	*podNetwork
	ipam         *ipam
	keys         keyLocks
	helloTimeout time.Duration // helloTimeout, except in tests
}

// podNetwork is the host's side of the pod network: it is set up for the nodes' state, and restored.
type podNetwork struct {
	reporter    // used by configureLoop only
	o           Options
	log         klog.Logger
	attachments *attachmentStore
	rules       rulesApplier
	wg          *wgDevice     // for the back end WireGuard; other nodes know its key also while another back end is used
	guardPeriod time.Duration // guardPeriod, except in tests
	// removeLeftovers removes what was left of attachments that do not exist any more.
	removeLeftovers func() error
	// attaching is held for reading while a pod has a device without an attachment, or an attachment without a device.
	// It is held for writing by code that takes a device without an attachment for a leftover.
	attaching sync.RWMutex
	network   atomic.Pointer[network] // nil until pods can be served
	// The rest is used by configureLoop only. triedNetwork is the last network that configure began to make. heal keeps
	// this one: if configure failed half-way, keeping the one before would undo what succeeded.
	triedNetwork      *network
	reportedFirewalls string // as last reported
	// podErrors and resizeErrors are the pods whose errors were logged.
	podErrors, resizeErrors map[key]bool
}

// NewServer checks the options, checks that the program nft, found on PATH, works here, and reads what an earlier run
// has left in StateDir. It changes nothing on the host yet.
func NewServer(o Options) (*Server, error) {
	if o.Socket == "" || o.StateDir == "" || o.ConfDir == "" || o.PodCIDRs == nil || len(o.ClusterCIDRs) == 0 {
		return nil, errors.New("cni: Socket, StateDir, ConfDir, PodCIDRs and ClusterCIDRs are required")
	}
	if o.Logger.GetSink() == nil {
		o.Logger = klog.Background()
	}
	o.Backend = cmp.Or(o.Backend, clusterconfig.NetworkBackends[0])
	log := o.Logger.WithName("cni")
	if !slices.Contains(clusterconfig.RunningBackends(), o.Backend) {
		return nil, fmt.Errorf("cni: there is no network back end that is called %q", o.Backend)
	}
	wireGuard, err := wireGuardKey(o.StateDir, log)
	if err != nil {
		return nil, err
	}
	program, err := newNFT()
	if err != nil {
		return nil, err
	}
	records, err := openAttachments(filepath.Join(o.StateDir, "sandboxes"), log)
	if err != nil {
		return nil, err
	}
	addresses, err := openIPAM(filepath.Join(o.StateDir, "ipam"))
	if err != nil {
		return nil, err
	}
	pn := &podNetwork{o: o, log: log, attachments: records, rules: rulesApplier{nft: program}, guardPeriod: guardPeriod,
		wg: newWGDevice(wireGuardDevice, wireGuard, log), reporter: reporter{log: log, send: o.Report}}
	s := &Server{podNetwork: pn, ipam: addresses, helloTimeout: helloTimeout}
	pn.removeLeftovers = func() error { return s.collect(nil) }
	return s, nil
}

// Run serves until ctx is done, and then waits for the calls in flight. Pods keep their network when it returns.
func (s *Server) Run(ctx context.Context) error {
	listener, err := unixsocket.Listen(s.o.Socket)
	if err != nil {
		return fmt.Errorf("the CNI plugin's socket: %w", err)
	}
	defer s.wg.close()
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()

	changes := timers.NewSignal()
	wg.Go(func() { s.followKernel(ctx, changes) })
	nft.FollowDeletions(ctx, &wg, changes, func(err error) {
		s.log.Info("The kernel does not say when another program removes the nftables table of the pod network; it is checked now and then",
			"err", err, "every", s.guardPeriod)
	}, ownTable())
	wg.Go(func() { s.configureLoop(ctx, changes) })
	for conn := s.accept(ctx, listener); conn != nil; conn = s.accept(ctx, listener) {
		wg.Go(func() { s.serve(ctx, conn) })
	}
	return nil
}

// accept returns the next call's connection, or nil when ctx is done.
func (s *Server) accept(ctx context.Context, l net.Listener) net.Conn {
	for {
		conn, err := l.Accept()
		if err == nil {
			return conn
		}
		if ctx.Err() != nil {
			return nil
		}
		s.log.Error(err, "A call of the container runtime about a pod's network could not be taken; trying on", "socket", s.o.Socket)
		timers.Sleep(ctx, acceptPause)
	}
}

// WireGuardKey returns the public key that other nodes need when the back end is WireGuard. They get it with any back
// end, so that the cluster can change to WireGuard without waiting for keys.
func (pn *podNetwork) WireGuardKey() string { return pn.wg.key.PublicKey().String() }

// Backend returns the name of the back end that the node uses now. It is empty until pods can be served.
func (pn *podNetwork) Backend() string {
	if nw := pn.network.Load(); nw != nil {
		return nw.name
	}
	return ""
}

// Ready reports whether pods can be served.
func (pn *podNetwork) Ready() bool { return pn.network.Load() != nil }

// acceptPause is the wait after accepting a call failed: the process has no free file descriptor.
const acceptPause = time.Second

// helloTimeout limits how long a connected plugin may take to send its request.
const helloTimeout = 10 * time.Second

func (s *Server) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var req wire.Request
	_ = conn.SetReadDeadline(time.Now().Add(s.helloTimeout))
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })() // no call waits for an unresponsive plugin
	if err := wire.Read(conn, &req); err != nil {
		if !errors.Is(err, io.EOF) {
			s.log.Info("Dropped a CNI call that could not be read", "err", err)
		}
		return
	}
	if ctx.Err() != nil {
		return
	}
	_ = conn.SetReadDeadline(time.Time{})

	// A runtime that stops waiting kills the plugin, which closes the connection. The call is then undone.
	removals := make(chan struct{})
	go func() {
		defer close(removals)
		_, _ = conn.Read(make([]byte, 1))
		cancel()
	}()
	resp := s.handle(ctx, req)
	if err := wire.Write(conn, resp); err != nil {
		s.log.Info("The caller of a CNI call was gone before the answer", "command", req.Command, "container", req.ContainerID, "err", err)
	}
	conn.Close()
	<-removals
}

// handle dispatches one request. It is the whole server without the socket.
func (s *Server) handle(ctx context.Context, req wire.Request) wire.Response {
	start := time.Now()
	var result any
	conf, err := parseConf(req.Config)
	if err == nil {
		switch req.Command {
		case wire.CommandAdd:
			result, err = s.add(ctx, req, conf)
		case wire.CommandDel:
			err = s.del(ctx, req)
		case wire.CommandCheck:
			err = s.check(req)
		case wire.CommandGC:
			err = s.gc(ctx, conf)
		case wire.CommandStatus:
			err = s.status()
		default:
			err = wire.Errorf(wire.CodeInvalidEnvironment, "unknown command %q", req.Command)
		}
	}
	resp := respond(result, conf, err)
	if resp.Error != nil {
		s.log.Info("CNI call failed", "command", req.Command, "container", req.ContainerID, "code", resp.Error.Code, "err", resp.Error)
	} else {
		s.log.V(2).Info("CNI call served", "command", req.Command, "container", req.ContainerID, "took", time.Since(start))
	}
	return resp
}

func respond(result any, conf pluginConf, err error) wire.Response {
	var resp wire.Response
	if err == nil && result != nil {
		resp.Result, err = json.Marshal(result)
	}
	if err == nil {
		return resp
	}
	var we *wire.Error
	if !errors.As(err, &we) {
		we = &wire.Error{Code: wire.CodeNetwork, Msg: err.Error()}
	}
	out := *we // an Error may be shared; the version is this call's
	out.CNIVersion = conf.CNIVersion
	return wire.Response{Error: &out}
}
