// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/hashicorp/raft"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/raftstore/watch"
)

// Store is one server's store.
type Store struct {
	opts Options
	log  *slog.Logger
	identity
	lifecycle

	// The way of a write: gathered into an entry, replicated, run, published.
	proposer *proposer
	raft     *raft.Raft
	dir      *disk.Dir
	fsm      *fsm

	api     *etcdapi.API // what clients ask, over gRPC or not
	watches *watch.Hub

	leadership *leadership  // this server's own
	leader     *leaderBoard // whoever it is
	lessor     *lessor      // while it leads, as the next
	compactor  *compactor

	replication replication // with the other servers, if the cluster can have any

	writes      underWay
	patience    patience // with clients' writes
	snapshotter *snapshotter
	backups     atomic.Int32 // being read
	refusing    atomic.Bool  // writes, for the quota: what was said of it last
	withoutRoom atomic.Bool  // this server leads, a voter's disk is full, and those that store and have room are no majority
	// without is what the others said when they were asked last and had a leader; nil if they had none, or this server
	// knows one.
	without atomic.Pointer[leaderElsewhere]
	counted atomic.Bool // Counted
}

// Open opens the store in o.Dir. If there is none, it makes a new cluster of
// one server, or joins that of o.Join. It returns before the store has a
// leader: see WaitReady.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	s := newStore(o)
	if err := s.openDir(ctx); err != nil {
		s.cancel()
		return nil, errors.Join(err, s.closeListener())
	}
	if err := s.openRaft(ctx); err != nil {
		s.cancel()
		return nil, errors.Join(err, s.dir.Close())
	}
	s.api = s.newAPI()
	s.proposer = newProposer(entriesInFlight, s.enter)
	s.replication.run()
	s.spawn(func() { s.watches.Run(s.ctx) })
	s.spawn(func() { s.watches.RunProgress(s.ctx) })
	s.spawn(func() { s.watchLeader(s.ctx) })
	s.spawn(func() { s.runLeadership(s.ctx) })
	s.spawn(func() { s.snapshotter.run(s.ctx) })
	s.spawn(func() {
		if s.WaitReady(s.ctx) == nil {
			close(s.ready)
		}
	})
	return s, nil
}

func newStore(o Options) *Store {
	s := &Store{opts: o, log: o.Logger, leadership: newLeadership(), leader: newLeaderBoard()}
	s.begin()
	s.patience.limit = o.RequestTimeout
	s.replication = standalone{s: s}
	s.watches = watch.NewHub(watch.Options{
		View: func() *mvcc.View { return s.fsm.view() }, Clock: o.Clock, ProgressInterval: o.ProgressInterval,
	})
	s.lessor = newLessor(o.Clock, s.expire)
	s.fsm = newFSM(s.published, s.applied)
	s.fsm.onRestore = func() error { return s.dir.Installed() }
	s.compactor = newCompactor(s)
	s.snapshotter = newSnapshotter(s)
	return s
}

// published is told of every new view. Those of a restart come before raft runs.
func (s *Store) published() {
	s.watches.Published()
	s.compactor.published(s.fsm.view().Stats())
	s.replication.published()
}

// committed returns how far this server, as leader of a term, knows the log to
// be committed. The view comes before the look at raft's term, which is saved
// before an entry of its leader is taken: what another leader committed since is
// no entry of this one's log, and followers of this term must not hear of it.
func (s *Store) committed() (term, index uint64, ok bool) {
	lead, _ := s.leadership.get()
	if !lead.Leader {
		return 0, 0, false
	}
	index = s.fsm.view().Applied()
	return lead.Term, index, s.raft.CurrentTerm() == lead.Term
}

func (s *Store) openDir(ctx context.Context) error {
	o := disk.Options{
		Path: s.opts.Dir, Identity: disk.Identity{Cluster: s.opts.ClusterID, Node: s.opts.NodeID},
		Logger: s.log, Clock: s.opts.Clock, Grown: s.snapshotter.grown, Flushed: s.opts.Counters.Flushed, Faults: s.opts.Faults,
	}
	dir, err := disk.Open(o)
	if damage := (*DamageError)(nil); errors.As(err, &damage) {
		if err = s.setAside(ctx, err); err == nil {
			dir, err = disk.Open(o)
		}
	}
	if err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	s.dir = dir
	s.identity = identityOf(dir.Identity, s.opts)
	return nil
}

// admit refuses writes that must not be tried now.
func (s *Store) admit() error {
	switch err := s.dir.Admit(); {
	case errors.Is(err, disk.ErrNoSpace):
		return rpctypes.ErrGRPCNoSpace
	case err != nil:
		return status.Error(codes.Unavailable, err.Error())
	}
	return nil
}

// WaitReady returns when a linearizable read has succeeded and the leader is known
// to all parts of the store: a read may succeed a moment earlier.
func (s *Store) WaitReady(ctx context.Context) error {
	for {
		_, err := s.Linearizable(ctx)
		if err == nil {
			_, _, err = s.awaitLeader(ctx)
		}
		if err == nil {
			return nil
		} else if ctx.Err() != nil || s.ctx.Err() != nil {
			return fmt.Errorf("raftstore: not ready: %w", err)
		}
		s.pause(ctx, nil) // it may have failed at once
	}
}

// Status says how the store is.
type Status struct {
	Leadership   Leadership
	Revision     int64 // newest revision applied here
	Compacted    int64 // oldest revision that can be read
	AppliedIndex uint64
	Level        int // of the newest log entries that all members can read
	mvcc.Stats
}

// Status returns the present state, without waiting for anything.
func (s *Store) Status() Status {
	view := s.fsm.view()
	lead, _ := s.leadership.get()
	return Status{
		Leadership: lead, Revision: view.Revision(), Compacted: view.Compacted(),
		AppliedIndex: s.raft.AppliedIndex(), Level: s.level(), Stats: view.Stats(),
	}
}
