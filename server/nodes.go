// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/nodetunnel"
	"github.com/coracle-k8s/coracle/server/liveness"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/tunnels"
)

// A node that is connected to this server and that it has never reached otherwise is tried reachSoon times every
// reachEvery, and then every reachLater.
const (
	reachEvery, reachLater = 2 * time.Second, 30 * time.Second
	reachSoon              = 15
	// reachAtOnce is how many are tried at a time: hundreds behind routers take all of reachPatience each.
	reachAtOnce = 32
	// reachPatience bounds one try.
	reachPatience = 2 * time.Second
	// stalledAfter is how long a write may wait for the disk before nodes are sent to another server. Requests here
	// wait as long; but a disk that is merely slow must not break off what goes on between nodes and this server.
	stalledAfter = 3 * time.Second
	// diskPoll is how often that is checked.
	diskPoll = 500 * time.Millisecond
)

func (s *Server) newTunnels() (*tunnels.Table, error) {
	return tunnels.New(tunnels.Options{
		Listener:    s.port.Route(nodetunnel.Protocol),
		Certificate: s.pki.Serving,
		ClientCA:    s.pki.CAPEM(pki.ClientCA),
		Now:         s.o.Clock.Now,
		Logger:      s.log.With("part", "nodes"),
	})
}

// serveNodes takes the connections of nodes, and other servers' questions about them, until ctx is done.
func (s *Server) serveNodes(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { s.reachNodes(ctx) })
	running.Go(func() {
		l := s.peers.ListenerFor(liveness.Protocol, s.port.Route(liveness.Protocol))
		if err := liveness.Answer(ctx, l, s.findNode); err != nil {
			s.log.Error("other servers' questions about nodes are not answered any more", "error", err)
		}
	})
	if err := s.tunnels.Run(ctx); err != nil {
		s.log.Error("nodes cannot connect any more; those that the server can reach are reached directly", "error", err)
	}
}

// drainNodes closes the connections of nodes while this server cannot serve them, until ctx is done, so that they fail
// over. What the programs of this machine ask is passed on to another server, also for its own node.
func (s *Server) drainNodes(ctx context.Context) {
	ticker := time.NewTicker(diskPoll)
	defer ticker.Stop()
	for now := (serviceability{}); ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if now.unable && s.elsewhere() != nil {
			s.starting.once.Do(func() { close(s.starting.away) })
		}
		before := now
		var why string
		if now, why = s.cannotServe(before); now == before {
			continue
		}
		switch {
		case !now.unable:
			s.log.Info("this server can serve nodes again: they are welcome")
		case !before.unable:
			s.log.Warn("nodes are sent to another server until this one can serve them", "reason", why)
		default:
			s.log.Info("what this machine's programs ask goes to another server: that one leads now", "server", now.leader)
		}
		if now.unable != before.unable {
			s.tunnels.Drain(now.unable)
		}
		s.detour.Away(now.unable)
	}
}

// cannotServe is what is so now, after before, and why. A server whose store waits at its start has another one that
// was found to be ready.
func (s *Server) cannotServe(before serviceability) (now serviceability, why string) {
	if list := s.elsewhere(); len(list) > 0 {
		return serviceability{unable: true, leader: list[0]},
			"its store waits, and the server at " + list[0] + " is ready"
	}
	if store := s.opened.Load(); store != nil {
		return before.next(store.Health())
	}
	return serviceability{}, ""
}

// serviceability says whether requests to this server wait or fail while another server would serve them.
type serviceability struct {
	unable bool
	leader string // the address of the other one that leads
}

// storeState is what a store says of itself.
type storeState interface {
	Stalled() time.Duration
	OtherLeader() string
	TakenOut() bool
	CutOff() bool
}

// next is what is so now, after v, and why.
func (v serviceability) next(store storeState) (now serviceability, why string) {
	leader, stalled := store.OtherLeader(), store.Stalled()
	switch {
	case stalled > stalledAfter && (leader != "" || v.unable): // the others may be electing one
		why = fmt.Sprintf("its disk has hung for %v", stalled.Round(time.Second))
	case store.TakenOut():
		why = "it was taken out of the cluster; stop it"
	case store.CutOff():
		why = "it does not hear the leader, which another server reaches"
	default:
		return serviceability{}, ""
	}
	return serviceability{unable: true, leader: cmp.Or(leader, v.leader)}, why
}

// reachNodes finds out which of the nodes that are connected can be reached without that, until ctx is done.
func (s *Server) reachNodes(ctx context.Context) {
	tries, pause := reachTries{}, reachLater
	kubelets := s.kubeletAuthorities()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.tunnels.Arrived():
		case <-time.After(pause):
		}
		var batch []string
		batch, pause = tries.take(s.tunnels.Indirect(), time.Now(), func(name string) bool { return s.roster.Node(name) != nil })
		var running sync.WaitGroup
		for _, name := range batch {
			running.Go(func() {
				reaching, cancel := context.WithTimeout(ctx, reachPatience)
				defer cancel()
				if n := s.roster.Node(name); n != nil && liveness.Shows(reaching, n, kubelets, s.o.Clock.Now()) {
					s.tunnels.Reached(name)
				}
			})
		}
		running.Wait()
		if s.roster.KnowsNodes() {
			s.tunnels.Forget(func(name string) bool { return s.roster.Node(name) == nil })
		}
	}
}

// findNode is what this server finds out about a node by itself.
func (s *Server) findNode(ctx context.Context, name string) liveness.Finding {
	if s.o.OwnNode && name == s.o.NodeName {
		return liveness.Heard
	}
	if c, ok := s.tunnels.Contact(name); ok && time.Since(c.Last) < liveness.Quick {
		return liveness.Heard
	}
	ctx, cancel := context.WithTimeout(ctx, liveness.CheckTimeout)
	defer cancel()
	n := s.roster.Node(name)
	if n == nil {
		return liveness.Silent
	}
	// Of a node that was connected and has never shown itself at its address, whatever answers there may be a router,
	// or another machine.
	if c, ok := s.tunnels.Contact(name); ok && !c.Direct {
		if liveness.Shows(ctx, n, s.kubeletAuthorities(), s.o.Clock.Now()) {
			s.tunnels.Reached(name)
			return liveness.Reachable
		}
		return liveness.Silent
	}
	if liveness.Reach(ctx, n) {
		return liveness.Reachable
	}
	return liveness.Silent
}

// kubeletAuthorities are those of kubelets' certificates.
func (s *Server) kubeletAuthorities() *x509.CertPool {
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(s.pki.KubeletTrustFile())
	if err != nil {
		s.log.Warn("the authority of kubelets cannot be read; nodes count as not reached directly", "error", err)
	}
	pool.AppendCertsFromPEM(pem)
	return pool
}

// checkNode finds out about a node, with the help of all servers.
func (s *Server) checkNode(ctx context.Context, n *corev1.Node) liveness.Finding {
	ctx, cancel := context.WithTimeout(ctx, liveness.CheckTimeout)
	defer cancel()
	others := s.roster.Others()
	findings := make(chan liveness.Finding, 1+len(others))
	go func() { findings <- s.findNode(ctx, n.Name) }()
	for _, address := range others {
		go func() {
			findings <- liveness.Ask(ctx, func(ctx context.Context) (net.Conn, error) {
				return s.peers.DialFor(ctx, liveness.Protocol, address)
			}, n.Name)
		}()
	}
	best := liveness.Silent
	for range cap(findings) { // each ends with ctx
		if best = max(best, <-findings); best == liveness.Heard {
			cancel()
		}
	}
	return best
}

// livenessPart judges nodes for a term.
func (s *Server) livenessPart(ctx context.Context, t *term.Term) error {
	nodes := t.Informers.Core().V1().Nodes()
	synced := nodes.Informer().HasSynced
	if !t.StartInformers(ctx) || !cache.WaitForCacheSync(ctx.Done(), synced) {
		return nil
	}
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: t.Client.CoreV1().Events("")})
	o := liveness.Options{
		Client: t.Client, Nodes: nodes.Lister(), Contact: s.tunnels.Contact, Check: s.checkNode,
		Recorder: events.NewRecorder(legacyscheme.Scheme, corev1.EventSource{Component: "node-liveness"}),
		Own:      s.o.ownNode(), Logger: s.log.With("part", "liveness"),
	}
	j := liveness.New(o)
	s.judge.Store(j)
	defer s.judge.CompareAndSwap(j, nil)
	j.Run(ctx)
	if ctx.Err() == nil {
		return errors.New("judging nodes ended by itself")
	}
	return nil
}

// Suspect reports that a node may be dead. The leader checks it at once; on the others nothing happens.
func (s *Server) Suspect(node string) {
	if j := s.judge.Load(); j != nil {
		j.Suspect(node)
	}
}
