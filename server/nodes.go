// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
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

const (
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

// newFinder makes what finds out about nodes.
func (s *Server) newFinder() *liveness.Finder {
	return &liveness.Finder{
		Tunnels: s.tunnels, Roster: s.roster, Own: s.o.ownNode(), KubeletCA: s.pki.KubeletTrustFile(),
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return s.peers.DialFor(ctx, liveness.Protocol, address)
		},
		Now: s.o.Clock.Now, Logger: s.log,
	}
}

// serveNodes takes the connections of nodes, and other servers' questions about them, until ctx is done.
func (s *Server) serveNodes(ctx context.Context) {
	finder := s.newFinder()
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { finder.ReachNodes(ctx) })
	running.Go(func() {
		l := s.peers.ListenerFor(liveness.Protocol, s.port.Route(liveness.Protocol))
		if err := liveness.Answer(ctx, l, finder.Find); err != nil {
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
		if now.unable && s.starting.Elsewhere() != nil {
			s.starting.GoAway()
		}
		before := now
		var why string
		if now, why = s.cannotServe(before); now == before {
			continue
		}
		switch {
		case !now.unable:
			s.log.Info("this server can serve nodes again: their connections are accepted")
		case !before.unable:
			s.log.Warn("the connections of nodes are drained until this server can serve them", "reason", why)
		default:
			s.log.Info("requests of this machine fail over to another server: that one leads now", "server", now.leader)
		}
		if now.unable != before.unable {
			s.tunnels.Drain(now.unable)
		}
		s.localFailover.FailOver(now.unable)
	}
}

// cannotServe is what is so now, after before, and why. A server whose store waits at its start has another one that
// was found to be ready.
func (s *Server) cannotServe(before serviceability) (now serviceability, why string) {
	if list := s.starting.Elsewhere(); len(list) > 0 {
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
	Removed() bool
	CutOff() bool
}

// next is what is so now, after v, and why.
func (v serviceability) next(store storeState) (now serviceability, why string) {
	leader, stalled := store.OtherLeader(), store.Stalled()
	switch {
	case stalled > stalledAfter && (leader != "" || v.unable): // the others may be electing one
		why = fmt.Sprintf("its disk has been stalled for %v", stalled.Round(time.Second))
	case store.Removed():
		why = "it was removed from the cluster; stop it"
	case store.CutOff():
		why = "it does not hear the leader, which another server reaches"
	default:
		return serviceability{}, ""
	}
	return serviceability{unable: true, leader: cmp.Or(leader, v.leader)}, why
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
		Client: t.Client, Nodes: nodes.Lister(), Contact: s.tunnels.Contact, Check: s.newFinder().Check,
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
