// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/server/tunnels"
)

// A node that is connected to this server and was never reached directly is tried reachSoon times every reachEvery, and
// then every reachLater.
const (
	reachEvery, reachLater = 2 * time.Second, 30 * time.Second
	reachSoon              = 15
	// reachAtOnce is how many nodes are tried concurrently: for hundreds of nodes behind routers each attempt takes all
	// of reachTimeout.
	reachAtOnce = 32
	// reachTimeout limits one attempt.
	reachTimeout = 2 * time.Second
)

// Finder finds out whether nodes are alive, for this server and for others that ask it. It uses the connections that
// nodes keep to this server, and their addresses.
type Finder struct {
	Tunnels *tunnels.Table
	Roster  *roster.Roster
	// Own says whether a node runs in this process.
	Own func(node string) bool
	// KubeletCA is the file with the CA of kubelets' certificates.
	KubeletCA string
	// Dial connects to another server for Protocol.
	Dial   func(ctx context.Context, address string) (net.Conn, error)
	Now    func() time.Time
	Logger *slog.Logger
}

// ReachNodes finds out which of the connected nodes can also be reached directly, until ctx is done.
func (f *Finder) ReachNodes(ctx context.Context) {
	tries, pause := reachTries{}, reachLater
	kubelets := f.authorities()
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.Tunnels.Arrived():
		case <-time.After(pause):
		}
		var batch []string
		batch, pause = tries.dueNodes(f.Tunnels.Indirect(), time.Now(), func(name string) bool { return f.Roster.Node(name) != nil })
		var running sync.WaitGroup
		for _, name := range batch {
			running.Go(func() {
				reaching, cancel := context.WithTimeout(ctx, reachTimeout)
				defer cancel()
				if n := f.Roster.Node(name); n != nil && ProvesIdentity(reaching, n, kubelets, f.Now()) {
					f.Tunnels.Reached(name)
				}
			})
		}
		running.Wait()
		if f.Roster.KnowsNodes() {
			f.Tunnels.RemoveDeleted(func(name string) bool { return f.Roster.Node(name) == nil })
		}
	}
}

// Find returns what this server by itself finds out about a node.
func (f *Finder) Find(ctx context.Context, name string) Finding {
	if f.Own(name) {
		return Connected
	}
	if c, ok := f.Tunnels.Contact(name); ok && time.Since(c.Last) < Quick {
		return Connected
	}
	ctx, cancel := context.WithTimeout(ctx, CheckTimeout)
	defer cancel()
	n := f.Roster.Node(name)
	if n == nil {
		return Unresponsive
	}
	// This node was connected and has never proved its identity at its address. A router or another machine may answer
	// there.
	if c, ok := f.Tunnels.Contact(name); ok && !c.Direct {
		if ProvesIdentity(ctx, n, f.authorities(), f.Now()) {
			f.Tunnels.Reached(name)
			return Reachable
		}
		return Unresponsive
	}
	if Reach(ctx, n) {
		return Reachable
	}
	return Unresponsive
}

// authorities returns the CA certificates of kubelets.
func (f *Finder) authorities() *x509.CertPool {
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(f.KubeletCA)
	if err != nil {
		f.Logger.Warn("the kubelets' certificate authority cannot be read; no node counts as reachable directly", "error", err)
	}
	pool.AppendCertsFromPEM(pem)
	return pool
}

// Check asks all servers about a node and returns the best finding.
func (f *Finder) Check(ctx context.Context, n *corev1.Node) Finding {
	ctx, cancel := context.WithTimeout(ctx, CheckTimeout)
	defer cancel()
	others := f.Roster.OtherAddresses()
	findings := make(chan Finding, 1+len(others))
	go func() { findings <- f.Find(ctx, n.Name) }()
	for _, address := range others {
		go func() {
			findings <- QueryPeer(ctx, func(ctx context.Context) (net.Conn, error) {
				return f.Dial(ctx, address)
			}, n.Name)
		}()
	}
	best := Unresponsive
	for range cap(findings) { // each ends with ctx
		if best = max(best, <-findings); best == Connected {
			cancel()
		}
	}
	return best
}
