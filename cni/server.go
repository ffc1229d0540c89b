// SPDX-License-Identifier: Apache-2.0

// Package cni is the node's side of the pod network: it answers the CNI plugin over a unix socket.
//
// It owns the pods' addresses (containernetworking's host-local allocator), one veth pair and one host route per pod,
// the bridge device that carries the node's own address in the pod network, the nftables table `coracle` (host ports,
// masquerade) and the CNI configuration that makes the node network-ready. Pods are routed, not bridged: docs/adr/0020
// says why. It never touches Services (package proxy), other hosts, or anybody else's tables, routes and devices.
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
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/internal/unixsocket"
)

// Names on the host.
const (
	Bridge      = "coracle0" // the device that carries the node's own address in the pod network
	NetworkName = "coracle"
	PluginName  = "coracle-cni"
)

// Options are what a Server needs. Socket, StateDir, ConfDir, PodCIDRs and ClusterCIDRs are required.
type Options struct {
	// Socket is the unix socket that the plugin calls; its folder is made when missing.
	Socket string
	// StateDir keeps addresses and attachments over restarts.
	StateDir string
	// ConfDir is the folder where containerd looks for CNI configurations. The file there appears only once pods can
	// be served, which is what makes the node network-ready.
	ConfDir string
	// PodCIDRs delivers the node's pod CIDRs, IPv4 first, once they are known and whenever they change. What was known
	// last time is used until then. See WatchPodCIDRs.
	PodCIDRs <-chan []netip.Prefix
	// Backend is how packets reach other nodes, in a cluster that says nothing else: one of
	// clusterconfig.NetworkBackends but none; empty means the first.
	Backend string
	// Backends delivers what the cluster says once it is known, and whenever it changes; empty where it says nothing
	// any more. What was known last is used until then. nil for a node that goes by Backend alone.
	Backends <-chan string
	// Changed, when set, is called when the node goes by another back end than before, and at the first. It must not
	// block.
	Changed func()
	// Peers delivers the other nodes once they are known and whenever they change; what was known last time is used
	// until then. See WatchPeers. nil for a node that stays alone.
	Peers <-chan []Peer
	// NodeIPs are this node's addresses, at which others reach it. Interface, when set, names the interface to others'
	// pods or is a pattern for it (path.Match); otherwise it is the one that has NodeIPs.
	NodeIPs   []netip.Addr
	Interface string
	// External are addresses at which other nodes reach this one instead, at most one of each family: who has them
	// translates them to the underlay's.
	External []netip.Addr
	// Report, when set, is called with what keeps this node from reaching others' pods, and nil when nothing does any
	// more.
	Report func(error)
	// Firewalls, when set, is called with which of other programs' firewalls decide what comes to this machine and its
	// pods, whenever that changes; empty when none does any more.
	Firewalls func(found string)
	// ClusterCIDRs hold all pods of the cluster: traffic between them keeps its addresses.
	ClusterCIDRs []netip.Prefix
	// ServiceCIDRs get a route to Bridge, so that a host without any default route still reaches Services. May be
	// empty.
	ServiceCIDRs []netip.Prefix
	// ReservedPorts are ports of the node that the cluster itself needs: no pod gets one of them as a host port, and by
	// TCP none gets what the node's own programs send there at loopback.
	ReservedPorts []uint16
	// Port is where other machines reach this one, by TCP and UDP: a firewall has to let it through.
	Port int
	// Policies, when set, has a say before a pod gets its network.
	Policies Policies
	// Logger is klog's own when left zero.
	Logger klog.Logger
}

// Policies puts the rules of a pod's NetworkPolicies in force before its first packet.
type Policies interface {
	// Admit returns when the rules for the pod are in force. After an error the pod gets no network.
	Admit(context.Context, Sandbox) error
	// Release says that the sandbox of that ID has no network any more, or did not get one.
	Release(id string)
}

// Sandbox is a pod's network as Policies know it.
type Sandbox struct {
	ID                   string // of the attachment
	Namespace, Name, UID string // the pod's; UID is empty where the runtime, or an earlier version, did not say it
	IPs                  []netip.Addr
}

// Sandboxes are those that have a network on this node.
func (s *Server) Sandboxes() []Sandbox {
	var out []Sandbox
	for _, r := range s.attachments.list() {
		if b, ok := r.sandbox(); ok {
			out = append(out, b)
		}
	}
	return out
}

// Server answers CNI calls. Make one with NewServer.
type Server struct {
	o           Options
	log         klog.Logger
	attachments *attachmentStore
	ipam        *ipam
	keys        keyLocks
	rules       rulesApplier
	wg          *wgDevice     // that of the back end WireGuard, whose key is known to other nodes also while there is another one
	guard       time.Duration // guardPeriod, but for tests
	hello       time.Duration // helloTimeout, but for tests
	// attaching is held for reading while a pod has a device and no attachment, or the other way round; for writing by
	// what takes a device without an attachment for a leftover.
	attaching sync.RWMutex
	network   atomic.Pointer[network] // nil until pods can be served
	// tried is the last network that configure began to make, and what heal looks after: where it failed half-way, the
	// one before would undo what succeeded. It belongs to configureLoop.
	tried *network
	// What was last said about other firewalls, and about which pods; only configureLoop touches them.
	firewalls                     string
	podTrouble, resizeTrouble     map[key]bool
	underlayTrouble, peersTrouble string
	waysTrouble                   string
	backendTrouble, setupTrouble  string
}

// NewServer checks the options, sees that the program nft, found on PATH, works here, and reads what an earlier run
// left in StateDir. It changes nothing on the host yet.
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
	return &Server{o: o, log: log, attachments: records, ipam: addresses, rules: rulesApplier{nft: program},
		wg: newWGDevice(wireGuardDevice, wireGuard, log), guard: guardPeriod, hello: helloTimeout}, nil
}

// Run serves until ctx is done, then waits for the calls in flight. Pods keep their network when it returns.
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
			"err", err, "every", s.guard)
	}, ownTable())
	wg.Go(func() { s.configureLoop(ctx, changes) })
	for conn := s.accept(ctx, listener); conn != nil; conn = s.accept(ctx, listener) {
		wg.Go(func() { s.serve(ctx, conn) })
	}
	return nil
}

// accept returns the next call; nil when ctx is done.
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

// WireGuardKey is the public key that other nodes have to know where the back end is WireGuard. They get it with
// any back end, so that the cluster can change to WireGuard without a wait.
func (s *Server) WireGuardKey() string { return s.wg.key.PublicKey().String() }

// Backend is the back end that the node goes by now, by its name; empty until pods can be served.
func (s *Server) Backend() string {
	if nw := s.network.Load(); nw != nil {
		return nw.name
	}
	return ""
}

// Ready says whether pods can be served.
func (s *Server) Ready() bool { return s.network.Load() != nil }

// acceptPause is the wait after a call that could not be taken: the process has no descriptor left for it.
const acceptPause = time.Second

// helloTimeout bounds how long a connected plugin may take to send its request.
const helloTimeout = 10 * time.Second

func (s *Server) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var req wire.Request
	_ = conn.SetReadDeadline(time.Now().Add(s.hello))
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

	// A runtime that gives up kills the plugin, which closes the connection: the call is then undone.
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

// handle dispatches one request; it is the whole server but for the socket.
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
