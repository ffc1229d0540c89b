// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/raftstore/peer"
	"github.com/coracle-k8s/coracle/raftstore/watch"
)

// Store is one server's store.
type Store struct {
	opts Options
	log  *slog.Logger

	clusterID uint64
	memberID  uint64
	name      string // the server's
	id        raft.ServerID
	address   raft.ServerAddress
	fresh     bool // its directory has never been part of a cluster
	joins     bool // and it begins none

	fsm       *fsm
	watches   *watch.Hub
	api       *etcdapi.API
	lead      *leadership
	lessor    *lessor
	compactor *compactor
	proposer  *proposer // to raft
	raft      *raft.Raft
	raftLeads chan bool
	alone     *raft.InmemTransport // of a server that talks to nobody
	dir       *disk.Dir

	snapshotter *snapshotter
	backups     atomic.Int32 // being read
	refusing    atomic.Bool  // writes, for the quota: what was said of it last

	// peers is nil if the cluster has one server; what follows is then unused.
	peers       *peer.Transport
	formerPeers []disk.Peer
	forwarder   *proposer     // to the leader
	logs        raft.LogStore // the log as raft has it
	reads       *reads
	session     session
	opening     chan struct{} // capacity 1: held by who opens the session
	started     chan struct{} // closed when raft can be used

	leader     *leaderBoard
	refreshing sync.Mutex    // one look at who leads at a time
	heard      chan struct{} // capacity 1: the transport heard another leader
	standing   atomic.Bool   // for election, because the leader has ended
	overtaken  chan uint64   // capacity 1: the term of this server's that is over

	forwarded atomic.Uint64 // for metrics

	ctx     context.Context // ends when the store closes
	cancel  context.CancelFunc
	tasks   sync.WaitGroup // runLeadership, the hub, every watch
	once    sync.Once
	ready   chan struct{} // closed when WaitReady would have returned
	stopped chan struct{} // closed when raft has ended
	closed  chan struct{} // closed when nothing runs any more
	err     error         // of Close; readable then

	spawning sync.Mutex // held to start a task, and to forbid it
	ending   bool
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
		return nil, errors.Join(err, s.dir.Close(), s.closeListener())
	}
	s.api = s.newAPI()
	s.proposer = newProposer(entriesInFlight, s.enter)
	if s.peers != nil {
		s.forwarder = newProposer(callsInFlight, s.forward)
		s.reads = &reads{s: s}
		s.spawn(func() { s.announce(s.ctx) })
		s.spawn(func() { s.notePeers(s.ctx) })
	}
	close(s.started)
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
	s := &Store{
		opts: o, log: o.Logger, lead: newLeadership(), leader: newLeaderBoard(),
		ready:     make(chan struct{}),
		stopped:   make(chan struct{}),
		closed:    make(chan struct{}),
		raftLeads: make(chan bool, 16), // raft blocks on it; the reader is rarely late
		opening:   make(chan struct{}, 1), started: make(chan struct{}),
		heard: make(chan struct{}, 1), overtaken: make(chan uint64, 1),
	}
	s.watches = watch.NewHub(watch.Options{
		View: func() *mvcc.View { return s.fsm.view() }, Clock: o.Clock, ProgressInterval: o.ProgressInterval,
	})
	s.lessor = newLessor(o.Clock, s.expire)
	s.fsm = newFSM(s.published, s.applied)
	s.fsm.onRestore = func() error { return s.dir.Installed() }
	s.compactor = newCompactor(s)
	s.snapshotter = newSnapshotter(s)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// published is told of every new view. Those of a restart come before raft runs.
func (s *Store) published() {
	s.watches.Published()
	s.compactor.published(s.fsm.view().Stats())
	if s.peers == nil {
		return
	}
	if term, index, ok := s.committed(); ok {
		s.peers.Committed(term, index)
	}
}

// committed returns how far this server, as leader of a term, knows the log to
// be committed. The view comes before the look at raft's term, which is saved
// before an entry of its leader is taken: what another leader committed since is
// no entry of this one's log, and followers of this term must not hear of it.
func (s *Store) committed() (term, index uint64, ok bool) {
	lead, _ := s.lead.get()
	if !lead.Leader {
		return 0, 0, false
	}
	index = s.fsm.view().Applied()
	return lead.Term, index, s.raft.CurrentTerm() == lead.Term
}

// spawn runs a task that Close waits for, unless the store is closing.
func (s *Store) spawn(task func()) bool {
	s.spawning.Lock()
	defer s.spawning.Unlock()
	if s.ending {
		return false
	}
	s.tasks.Go(task)
	return true
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
	if s.opts.Network != nil {
		if s.formerPeers, err = disk.ReadPeers(s.opts.Dir); err != nil {
			s.log.Warn("the note of the other servers' addresses cannot be used", "err", err)
		}
	}
	s.name, s.id = dir.Identity.Node, raft.ServerID(dir.Identity.Member)
	s.address = raft.ServerAddress(s.id) // of a server that talks to nobody
	if s.opts.Network != nil {
		s.address = withLevel(raftAddress(s.id, s.opts.Network.Address), s.opts.level)
	}
	s.clusterID, s.memberID = clusterNumber(dir.Identity.Cluster), memberID(dir.Identity.Member)
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

// WaitReady returns when a linearizable read has succeeded.
func (s *Store) WaitReady(ctx context.Context) error {
	for {
		if _, err := s.Linearizable(ctx); err == nil {
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
	lead, _ := s.lead.get()
	return Status{
		Leadership: lead, Revision: view.Revision(), Compacted: view.Compacted(),
		AppliedIndex: s.raft.AppliedIndex(), Level: s.level(), Stats: view.Stats(),
	}
}

// Close stops the store and waits until nothing of it runs, or ctx ends: a
// disk may hang. Writes that were not acknowledged by then fail, with their
// outcome open.
func (s *Store) Close(ctx context.Context) error {
	s.once.Do(func() {
		go func() {
			defer close(s.closed)
			s.err = s.close()
		}()
	})
	select {
	case <-s.closed:
		return s.err
	case <-ctx.Done():
		return fmt.Errorf("raftstore: still stopping, the disk may hang: %w", ctx.Err())
	}
}

func (s *Store) close() error {
	s.handOver()
	s.proposer.end()
	s.cancel()
	s.lead.close()
	s.dir.Abort() // or raft would wait for a full disk
	stopped := s.raft.Shutdown()
	if s.peers != nil {
		_ = s.peers.Close() // never fails; raft may be waiting for it
	}
	err := stopped.Error()
	close(s.stopped)
	s.proposer.stop()
	if s.forwarder != nil {
		s.forwarder.stop()
	}
	s.spawning.Lock()
	s.ending = true
	s.spawning.Unlock()
	s.tasks.Wait()
	if err != nil {
		err = fmt.Errorf("raftstore: stop: %w", err)
	}
	return errors.Join(err, s.dir.Close())
}
