// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"net/http"

	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/raftstore"
)

// Levels is the cluster's level as a server knows it.
type Levels struct{ s *Server }

// Levels returns the cluster's level as this server knows it.
func (s *Server) Levels() Levels { return Levels{s} }

// Cluster returns the cluster's level.
func (l Levels) Cluster() int {
	if store := l.s.store.Opened(); store != nil {
		return store.Cluster().Level()
	}
	return l.s.o.Level
}

// Report returns the state of the cluster's level. members are those of the gossip.
func (l Levels) Report(members []status.Member) *status.Level {
	return l.reportAt(l.Cluster(), members)
}

func (l Levels) reportAt(cluster int, members []status.Member) *status.Level {
	return status.JudgeLevel(status.LevelInput{
		Cluster: cluster, Running: l.s.o.Level, Newest: level.Newest(), Version: l.s.o.Version, Members: members,
		Nodes: l.s.roster.AgentNodes(), Servers: convert.Slice(l.s.store.Members(), func(m raftstore.Member) status.LevelServer {
			return status.LevelServer{Address: m.Address, Newest: m.Newest, Leader: m.Leader, Self: m.Self}
		}),
	})
}

// Handler serves status.RaisePath on a server's admin socket. Any server takes the request: the leader raises the
// level. The members of the store hold it up by what they have announced and by what they reply.
func (l Levels) Handler(members func() []status.Member) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status.JSONHandler(func(ctx context.Context) (*status.Level, error) {
			return l.raise(ctx, members(), r.URL.Query().Has(status.RaiseCheck))
		}).ServeHTTP(w, r)
	})
}

func (l Levels) raise(ctx context.Context, members []status.Member, check bool) (*status.Level, error) {
	store := l.s.store.Ready()
	if store == nil {
		return nil, errors.New("the store is not ready yet, so the level was not changed; coracle status says why")
	}
	out := l.Report(members)
	if out.Next == 0 || len(out.HoldsUp) > 0 {
		return out, nil
	}
	select {
	case <-l.s.ready:
	default: // then the list of nodes may be empty, and an older agent would hold nothing up
		return nil, errors.New("this server is not ready yet and may not know all nodes, so the level was not changed; coracle status says why")
	}
	if check {
		return out, store.Cluster().CheckRaise(ctx, out.Next)
	}
	if err := store.Cluster().RaiseLevel(ctx, out.Next); err != nil {
		return nil, err
	}
	out = l.reportAt(out.Next, members) // this server's store may not know the new level yet
	out.Raised = true
	return out, nil
}
