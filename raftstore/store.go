// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/raftstore/watch"
)

// Store is one server's store: it opens, writes, reads, watches and closes. Its parts do the rest. A part has those
// parts that it uses, which are above it here, and no part has the Store.
type Store struct {
	replica    *replica     // of the log and the state
	leadership *leadership  // this server's own
	leader     *leaderBoard // the cluster's leader
	quota      *quota
	writer     *writer

	snapshotter *snapshotter
	lessor      *lessor // while this server leads, as the next
	compactor   *compactor

	replication replication // with the other servers, if the cluster can have any
	cluster     *Cluster
	leases      *leases

	api     *etcdapi.API // what clients ask, over gRPC or not
	watches *watch.Hub
	backups atomic.Int32 // being read
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
	if err := s.replica.open(ctx, s.snapshotter.grown); err != nil {
		s.replica.cancel()
		return nil, errors.Join(err, s.replica.closeListener())
	}
	if err := s.openRaft(ctx); err != nil {
		s.replica.cancel()
		return nil, errors.Join(err, s.replica.dir.Close())
	}
	s.api = s.newAPI()
	s.writer.proposer = newProposer(entriesInFlight, s.replica.enter)
	watching := &leaderWatch{leaderRoute: leaderRoute{s.replica, s.leader, s.replication}, leadership: s.leadership}
	leading := &duties{
		replica: s.replica, leadership: s.leadership, lessor: s.lessor, compactor: s.compactor, replication: s.replication,
	}
	s.replication.run()
	s.replica.spawn(func() { s.watches.Run(s.replica.ctx) })
	s.replica.spawn(func() { s.watches.RunProgress(s.replica.ctx) })
	s.replica.spawn(func() { watching.run(s.replica.ctx) })
	s.replica.spawn(func() { leading.run(s.replica.ctx) })
	s.replica.spawn(func() { s.snapshotter.run(s.replica.ctx) })
	s.replica.spawn(func() {
		if s.WaitReady(s.replica.ctx) == nil {
			close(s.replica.ready)
		}
	})
	return s, nil
}

func newStore(o Options) *Store {
	r := &replica{opts: o, log: o.Logger}
	r.begin()
	s := &Store{replica: r, leadership: newLeadership(), leader: newLeaderBoard(r.ctx), quota: &quota{replica: r}}
	s.writer = &writer{replica: r, leadership: s.leadership}
	s.writer.patience.limit = o.RequestTimeout
	s.replication = standalone{replica: r, leadership: s.leadership, writer: s.writer}
	s.watches = watch.NewHub(watch.Options{
		View: func() *mvcc.View { return r.fsm.view() }, Clock: o.Clock, ProgressInterval: o.ProgressInterval,
	})
	s.lessor = newLessor(o.Clock, s.writer.expire)
	r.fsm = newFSM(s.published, s.applied)
	r.fsm.onRestore = func() error { return r.dir.Installed() }
	s.compactor = newCompactor(s.writer)
	s.snapshotter = newSnapshotter(r)
	return s
}

// published is called for every new view. Those of a restart come before raft runs.
func (s *Store) published() {
	s.watches.NotifyPublished()
	s.compactor.published(s.replica.fsm.view())
	s.replication.published()
}

// WaitReady returns when a linearizable read has succeeded and the leader is known
// to all parts of the store: a read may succeed a moment earlier.
func (s *Store) WaitReady(ctx context.Context) error {
	for {
		_, err := s.Linearizable(ctx)
		if err == nil {
			_, _, err = s.leader.await(ctx)
		}
		if err == nil {
			return nil
		} else if ctx.Err() != nil || s.replica.ctx.Err() != nil {
			return fmt.Errorf("raftstore: not ready: %w", err)
		}
		pause(ctx, nil) // it may have failed at once
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
	view := s.replica.fsm.view()
	lead, _ := s.leadership.get()
	return Status{
		Leadership: lead, Revision: view.Revision(), Compacted: view.Compacted(),
		AppliedIndex: s.replica.raft.AppliedIndex(), Level: s.replica.level(), Stats: view.Stats(),
	}
}
