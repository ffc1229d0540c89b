// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/raftstore/peer"
	"github.com/coracle-k8s/coracle/raftstore/watch"
)

// Store is one server's store: it opens, writes, reads, watches and closes. Its parts do the rest. A part holds the
// parts that it uses, which are above it in this list. No part holds the Store.
type Store struct {
	replica    *replica     // this server's copy of the log and the state
	leadership *leadership  // whether this server leads
	leader     *leaderBoard // the cluster's leader
	quota      *quota
	writer     *writer

	snapshotter *snapshotter
	lessor      *lessor // works while this server leads, as does the compactor
	compactor   *compactor

	replication replication // with the other servers, if the cluster can have any
	cluster     *Cluster
	leases      *leases

	api     *etcdapi.API // answers clients, over gRPC or in this process
	watches *watch.Hub
	backups atomic.Int32 // how many backups are being read
}

// Open opens the store in o.Dir. If there is none, it makes a new cluster of one server, or joins the cluster of
// o.Join. It returns before the store has a leader: see WaitReady.
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
	s.writer.proposer = newProposer(entriesInFlight, s.replica.level, s.replica.enter)
	watching := &leaderWatch{leaderRoute: leaderRoute{s.replica, s.leader, s.replication}, leadership: s.leadership}
	leading := &duties{
		replica: s.replica, leadership: s.leadership, lessor: s.lessor, compactor: s.compactor, replication: s.replication,
	}
	s.replication.run()
	s.replica.spawn(func() { s.replica.followLevel(s.replica.ctx) })
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
	r := &replica{opts: o, log: o.Logger, raising: make(chan struct{}, 1)}
	r.beginTask()
	s := &Store{replica: r, leadership: newLeadership(), leader: newLeaderBoard(r.ctx)}
	s.quota = &quota{replica: r, leadership: s.leadership}
	s.writer = &writer{replica: r, leadership: s.leadership, quota: s.quota}
	s.writer.timeLimit.limit = o.RequestTimeout
	s.replication = standalone{replica: r, Transport: peer.Closed(), leadership: s.leadership, writer: s.writer}.asReplication()
	s.watches = watch.NewHub(watch.Options{
		View: func() *mvcc.View { return r.fsm.view() }, Clock: o.Clock, ProgressInterval: o.ProgressInterval,
	})
	s.lessor = newLessor(o.Clock, s.writer.expire)
	r.fsm = newFSM(s.published, s.applied)
	r.fsm.newest = o.newest
	if o.outdated != nil {
		r.fsm.outdated = o.outdated
	}
	r.fsm.onRestore = func() error { return r.dir.Installed() }
	r.fsm.onLevel = func() { s.replication.levelRaised() }
	s.compactor = newCompactor(s.writer)
	s.snapshotter = newSnapshotter(r)
	return s
}

// published is called for every new view. The views of a restart are published before raft runs.
func (s *Store) published() {
	s.watches.NotifyPublished()
	s.compactor.published(s.replica.fsm.view())
	s.replication.published()
}

// WaitReady returns when a linearizable read has succeeded and all parts of the store know the leader. A read may
// succeed a moment before they know it.
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
		pauseRetry(ctx, nil) // the read may have failed at once
	}
}

// Status is the present state of the store.
type Status struct {
	Leadership   Leadership
	Revision     int64 // newest revision that this server has applied
	Compacted    int64 // oldest revision that can be read
	AppliedIndex uint64
	Level        int // the cluster's level
	mvcc.Stats
}

// Status returns the present state. It does not block.
func (s *Store) Status() Status {
	view := s.replica.fsm.view()
	lead, _ := s.leadership.get()
	return Status{
		Leadership: lead, Revision: view.Revision(), Compacted: view.Compacted(),
		AppliedIndex: s.replica.raft.AppliedIndex(), Level: s.replica.level(), Stats: view.Stats(),
	}
}
