// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"net"
	"sync"

	"github.com/coracle-k8s/coracle/nodetunnel"
	"github.com/coracle-k8s/coracle/server/liveness"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/tunnels"
)

func (s *Server) newTunnels() (*tunnels.Table, error) {
	return tunnels.New(tunnels.Options{
		Listener:    s.port.Route(nodetunnel.Protocol),
		Certificate: s.pki.Serving,
		ClientCA:    s.pki.CAPEM(pki.ClientCA),
		Guard:       &s.revoked,
		Now:         s.o.Clock.Now,
		Logger:      s.log.With("part", "nodes"),
	})
}

// newFinder returns the Finder that finds out whether nodes are alive.
func (s *Server) newFinder() *liveness.Finder {
	return &liveness.Finder{
		Tunnels: s.tunnels, Roster: s.roster, Own: s.o.runsNode, KubeletCA: s.pki.CAFile(pki.KubeletCA),
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return s.peers.DialFor(ctx, liveness.Protocol, address)
		},
		Now: s.o.Clock.Now, Logger: s.log,
	}
}

// serveNodes serves the connections of nodes, and other servers' questions about nodes, until ctx is done.
func (s *Server) serveNodes(ctx context.Context) {
	finder := s.newFinder()
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { finder.ReachNodes(ctx) })
	running.Go(func() {
		l := s.peers.ListenerFor(liveness.Protocol, s.port.Route(liveness.Protocol))
		if err := liveness.Serve(ctx, l, finder.Find); err != nil {
			s.log.Error("this server no longer answers other servers' questions about nodes", "error", err)
		}
	})
	if err := s.tunnels.Run(ctx); err != nil {
		s.log.Error("nodes can no longer connect to this server; nodes that the server can reach are reached directly", "error", err)
	}
}
