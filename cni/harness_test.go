// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"k8s.io/klog/v2/ktesting"

	"github.com/coracle-k8s/coracle/cni/plugin"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/uml"
)

// TestMain is also the plugin's program: the runtime executes this binary under the plugin's name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == PluginName {
		os.Exit(plugin.Run(context.Background(), plugin.Options{Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout}))
	}
	os.Exit(uml.Main(m, netns.Main))
}

const (
	nodeAddr, outsideAddr = netns.NodeIP, netns.OutsideIP
	nodeAddr6, outAddr6   = netns.NodeIP6, netns.OutsideIP6
)

// node is a node under test: the process's own namespace, a server, a runtime that executes the real plugin.
type node struct {
	t       *testing.T
	o       Options
	cidrs   chan []netip.Prefix
	outside *netns.NS
	runtime *libcni.CNIConfig
	cancel  context.CancelFunc
	done    chan error
	server  *Server
	guard   time.Duration // of the server; 0 for a short one
	hello   time.Duration // of the server; 0 for the usual one
}

func newNode(t *testing.T, clusterCIDRs ...string) *node {
	t.Helper()
	netns.RequireNFT(t)
	dir := t.TempDir()
	exe := testenv.Must(os.Executable())(t)
	testenv.NoError(t, os.Symlink(exe, filepath.Join(dir, PluginName)))
	n := &node{
		t:       t,
		outside: netns.NewOutside(t),
		runtime: libcni.NewCNIConfigWithCacheDir([]string{dir}, filepath.Join(dir, "cache"), &invoke.DefaultExec{
			RawExec: &invoke.RawExec{Stderr: os.Stderr}, // the default is made at the first call, in a race of several
		}),
		o: Options{
			Socket: filepath.Join(dir, "run", "cni.sock"), StateDir: filepath.Join(dir, "state"), ConfDir: filepath.Join(dir, "net.d"),
			ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
		},
	}
	for _, c := range clusterCIDRs {
		n.o.ClusterCIDRs = append(n.o.ClusterCIDRs, netip.MustParsePrefix(c))
	}
	testenv.NoError(t, os.Mkdir(n.o.StateDir, 0o700))
	netns.Route(t, here{}, outsideAddr, "0.0.0.0/0")
	t.Cleanup(func() {
		n.stop()
		testenv.Check(t, Cleanup(CleanupOptions{StateDir: n.o.StateDir, ConfDir: n.o.ConfDir}))
	})
	n.start()
	return n
}

func (n *node) start() {
	n.t.Helper()
	n.cidrs = make(chan []netip.Prefix, 1)
	n.o.PodCIDRs = n.cidrs
	n.o.Logger = ktesting.NewLogger(n.t, ktesting.NewConfig(ktesting.BufferLogs(true)))
	s := testenv.Must(NewServer(n.o))(n.t)
	s.guardPeriod, s.helloTimeout = cmp.Or(n.guard, 100*time.Millisecond), cmp.Or(n.hello, s.helloTimeout)
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.done, n.server = cancel, make(chan error, 1), s
	go func() { n.done <- s.Run(ctx) }()
	eventually(n.t, func() error {
		conn, err := net.Dial("unix", n.o.Socket)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

func (n *node) stop() {
	if n.cancel == nil {
		return
	}
	n.cancel()
	testenv.Check(n.t, <-n.done, "server")
	n.cancel = nil
}

func (n *node) ready(cidrs ...string) *node {
	n.t.Helper()
	var ps []netip.Prefix
	for _, c := range cidrs {
		ps = append(ps, netip.MustParsePrefix(c))
	}
	n.cidrs <- ps
	n.waitReady()
	return n
}

func (n *node) waitReady() {
	n.t.Helper()
	eventually(n.t, func() error {
		_, err := os.Stat(filepath.Join(n.o.ConfDir, conflistName))
		return err
	})
}

// pod is a network namespace with a sandbox's name.
type pod struct {
	*netns.NS
	id  string
	ips []string
	rt  *libcni.RuntimeConf
}

func (n *node) pod(id string, ports ...PortMapping) *pod {
	n.t.Helper()
	p := n.sandbox(id, ports...)
	testenv.NoError(n.t, n.add(p), "ADD %s", id)
	return p
}

func (n *node) sandbox(id string, ports ...PortMapping) *pod {
	ns := netns.New(n.t)
	return &pod{NS: ns, id: id, rt: &libcni.RuntimeConf{
		ContainerID: id, NetNS: ns.Path, IfName: "eth0",
		Args:           [][2]string{{"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", id}},
		CapabilityArgs: map[string]any{"portMappings": ports},
	}}
}

func (n *node) conflist() *libcni.NetworkConfigList {
	n.t.Helper()
	list := testenv.Must(libcni.ConfListFromFile(filepath.Join(n.o.ConfDir, conflistName)))(n.t)
	return list
}

func (n *node) add(p *pod) error {
	n.t.Helper()
	res, err := n.runtime.AddNetworkList(context.Background(), n.conflist(), p.rt)
	if err != nil {
		return err
	}
	r := testenv.Must(types100.NewResultFromResult(res))(n.t)
	p.ips = nil
	for _, ip := range r.IPs {
		p.ips = append(p.ips, ip.Address.IP.String())
	}
	return nil
}

func (n *node) del(p *pod) {
	n.t.Helper()
	testenv.NoError(n.t, n.runtime.DelNetworkList(context.Background(), n.conflist(), p.rt), "DEL %s", p.id)
}

// here is the node's own namespace.
type here = netns.Own

func serve(t *testing.T, in netns.Doer, name, network, addr string) {
	t.Helper()
	netns.Serve(t, in, name, network, addr)
}

func ask(from netns.Doer, addr string) (answer string, err error) { return netns.Ask(from, addr) }

func expect(t *testing.T, ns netns.Doer, what, addr, want string) {
	t.Helper()
	testenv.Equal(t, testenv.Must(netns.AskFor(ns, addr, 2*time.Minute))(t), want, "%s (%s):", what, addr)
}

func refuse(t *testing.T, ns netns.Doer, what, addr string) {
	t.Helper()
	if got, err := ask(ns, addr); err == nil {
		t.Errorf("%s (%s): got %q, want no connection", what, addr, got)
	}
}

// firstHeard sends until something arrives, and returns the first that does. What must not arrive is sent first.
func firstHeard(t *testing.T, in net.PacketConn, send func() error) (text string) {
	t.Helper()
	buf := make([]byte, 2048)
	eventually(t, func() error {
		if err := send(); err != nil {
			return err
		}
		_ = in.SetReadDeadline(time.Now().Add(time.Second)) // then it is sent again
		n, _, err := in.ReadFrom(buf)
		text = string(buf[:n])
		return err
	})
	return text
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	testenv.Eventually(t, 2*time.Minute, "the network is as it should be", f)
}

func wantCode(t *testing.T, err error, code uint, words string) {
	t.Helper()
	var e *types.Error
	testenv.True(t, errors.As(err, &e) && e.Code == code && strings.Contains(e.Error(), words),
		"got %v, want code %d with words %q", err, code, words)
}
