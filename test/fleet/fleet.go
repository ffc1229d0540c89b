// SPDX-License-Identifier: Apache-2.0

// Package fleet has many nodes in one process, without machines and without containers: each does towards the servers
// what a real agent does, and so shows what a fleet costs them.
//
// A node joins with the cluster's token (joining/node), keeps a connection to each server (agent/tunnels), is a member
// of the gossip at an address of its own (gossip), has two connections to the API, one for each of its identities, with
// the watches of an agent, renews its Lease and reports its status as often as a kubelet, and takes the pods that are
// bound to it to Running. All of that is the product's own code or upstream's client, but for the kubelet's part, the
// watches, whose events are read and thrown away, and what the nodes' programs do among themselves without a server.
//
// What is no part of it: nodes do not look at Services, routes or names, and keep nothing of what they watch.
package fleet

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	// env has the Options of a re-executed test binary that is to be a fleet.
	env = "CORACLE_TEST_FLEET"
	// folder is in the machine's memory: a thousand nodes have ten thousand small files.
	folder = "/run/fleet"
	// joinAtOnce and watchAtOnce are how many nodes join, and begin to watch, at a time.
	joinAtOnce, watchAtOnce = 16, 8
	// clusterPort is where members of the gossip are reached, kubeletPort where kubelets are.
	clusterPort, kubeletPort = 6443, 10250
	// maxComplaints is how many errors are logged.
	maxComplaints = 200
)

// Network is where nodes have their addresses. The machine with the fleet takes all of it for its own.
var Network = netip.MustParsePrefix("10.78.0.0/16")

// What a fleet says when it has come so far.
const (
	Registered = "fleet: all nodes are registered"
	Watching   = "fleet: all nodes watch"
)

// Options are all required.
type Options struct {
	Nodes   int
	Members int      // how many of them are members of the gossip: all members of one process share its processors, and too many answer one another too late
	Servers []string // host:port of each
	Token   string   // for agents
}

// Process returns, unless this process was started to be a fleet: then it is one until it is stopped. A program that
// starts fleets calls it before anything else.
func Process() {
	text := os.Getenv(env)
	if text == "" {
		return
	}
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	var o Options
	err := json.Unmarshal([]byte(text), &o)
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		err = run(ctx, o)
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Start starts a fleet on a machine, to which each server has to have a route to Network. It does not wait; its log
// says how far it is.
func Start(t testing.TB, m *harness.Machine, o Options) *harness.Server {
	t.Helper()
	text := testenv.Must(json.Marshal(o))(t)
	self := testenv.Must(os.Executable())(t)
	if out, err := m.Run("ip", "route", "add", "local", Network.String(), "dev", "lo"); err != nil {
		t.Fatalf("the fleet's addresses: %v\n%s", err, out)
	}
	m.Env = append(m.Env, env+"="+string(text))
	f := &harness.Server{Machine: m, Bin: self, Role: "fleet", Log: m.Dir + "/fleet.log"}
	f.Start()
	return f
}

// fleet is what the nodes share.
type fleet struct {
	o          Options
	running    sync.WaitGroup
	complaints atomic.Int64

	mu   sync.Mutex
	byIP map[string]*node
}

// run is the fleet until ctx is done.
func run(ctx context.Context, o Options) error {
	f := &fleet{o: o, byIP: map[string]*node{}}
	if err := f.kubelets(ctx); err != nil {
		return err
	}
	nodes := make([]*node, o.Nodes)
	each := func(atOnce int, do func(*node)) {
		var working sync.WaitGroup
		free := make(chan struct{}, atOnce)
		for _, n := range nodes {
			free <- struct{}{}
			working.Go(func() {
				defer func() { <-free }()
				do(n)
			})
		}
		working.Wait()
	}
	for i := range nodes {
		nodes[i] = f.node(i)
	}
	each(joinAtOnce, func(n *node) { n.again(ctx, "join", n.join) })
	if ctx.Err() == nil {
		fmt.Println(Registered)
	}
	each(watchAtOnce, func(n *node) { n.watchAll(ctx) })
	if ctx.Err() == nil {
		fmt.Println(Watching)
	}
	f.running.Wait()
	return nil
}

// node makes the node of that number.
func (f *fleet) node(i int) *node {
	b := Network.Addr().As4()
	b[2], b[3] = byte(i/250), byte(i%250+1)
	n := &node{f: f, number: i, name: fmt.Sprintf("fleet-%04d", i), ip: netip.AddrFrom4(b), server: f.o.Servers[i%len(f.o.Servers)], pods: map[string]bool{}, configMaps: map[string]bool{}}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.byIP[n.ip.String()] = n
	return n
}

// kubelets listens at the kubelets' port of all nodes at once, until ctx is done. Servers look there whether a node is
// the one that it says it is. What else they ask is not found.
func (f *fleet) kubelets(ctx context.Context) error {
	l, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", kubeletPort))
	if err != nil {
		return err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		at, err := netip.ParseAddrPort(hello.Conn.LocalAddr().String())
		if err != nil {
			return nil, err
		}
		f.mu.Lock()
		n := f.byIP[at.Addr().Unmap().String()]
		f.mu.Unlock()
		if n == nil || n.serving.Load() == nil {
			return nil, fmt.Errorf("%s is no node yet", at.Addr())
		}
		return n.serving.Load(), nil
	}}
	server := &http.Server{Handler: http.NotFoundHandler(), TLSConfig: config, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), ReadHeaderTimeout: time.Minute}
	f.running.Go(func() {
		defer context.AfterFunc(ctx, func() { _ = server.Close() })()
		if err := server.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			f.complain("kubelets' port", err)
		}
	})
	return nil
}

// complain tells of an error, unless there have been many.
func (f *fleet) complain(what string, err error) {
	if f.complaints.Add(1) <= maxComplaints {
		fmt.Fprintf(os.Stderr, "%s %s: %v\n", time.Now().UTC().Format(time.TimeOnly), what, err)
	}
}
