// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// Store is one server's store.
type Store struct {
	opts Options
	log  *slog.Logger

	clusterID uint64
	memberID  uint64

	fsm       *fsm
	hub       *hub
	lead      *leadership
	lessor    *lessor
	compactor *compactor
	progress  *progress
	proposer  *proposer
	raft      *raft.Raft
	raftLeads chan bool
	dir       *disk.Dir

	snapshotter *snapshotter

	ctx    context.Context // ends when the store closes
	cancel context.CancelFunc
	tasks  sync.WaitGroup // runLeadership, hub.run, every watch
	once   sync.Once
	closed chan struct{} // closed when nothing runs any more
	err    error         // of Close; readable then
}

// Open opens the store in o.Dir, making a new one-server cluster if there is
// none. It returns before the store has a leader: see WaitReady.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	s := &Store{
		opts: o, log: o.Logger, lead: newLeadership(),
		closed:    make(chan struct{}),
		raftLeads: make(chan bool, 16), // raft blocks on it; the reader is rarely late
	}
	s.hub = newHub(func() *mvcc.View { return s.fsm.view() })
	s.fsm = newFSM(s.hub.notify)
	s.progress = &progress{
		clock: o.Clock, interval: o.ProgressInterval, watchers: make(map[*watcher]struct{}),
		revision: func() int64 { return s.fsm.view().Revision() },
	}
	s.lessor = newLessor(o.Clock, s.expire)
	s.compactor = &compactor{
		clock: o.Clock, age: o.HistoryAge, bytes: o.HistoryBytes, view: s.fsm.view, compact: s.compactTo,
	}
	s.snapshotter = newSnapshotter(s)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.openDir(); err != nil {
		s.cancel()
		return nil, err
	}
	if err := s.openRaft(); err != nil {
		s.cancel()
		return nil, errors.Join(err, s.dir.Close())
	}
	s.proposer = newProposer(s.raft, s.admit)
	s.proposer.start()
	s.tasks.Go(func() { s.hub.run(s.ctx) })
	s.tasks.Go(func() { s.progress.run(s.ctx) })
	s.tasks.Go(func() { s.runLeadership(s.ctx) })
	s.tasks.Go(func() { s.snapshotter.run(s.ctx) })
	return s, nil
}

func (s *Store) openDir() error {
	dir, err := disk.Open(disk.Options{
		Path: s.opts.Dir, Identity: disk.Identity{Cluster: s.opts.ClusterID, Node: s.opts.NodeID},
		Logger: s.log, Clock: s.opts.Clock, Grown: s.snapshotter.grown,
	})
	if err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	s.dir = dir
	s.clusterID, s.memberID = clusterNumber(dir.Identity.Cluster), memberID(dir.Identity.Node)
	return nil
}

// openRaft starts raft on the opened directory. The only voter talks to
// nobody, so its transport is one in memory.
func (s *Store) openRaft() error {
	conf := s.raftConfig()
	address, transport := raft.NewInmemTransport(raft.ServerAddress(s.dir.Identity.Node))
	exists, err := raft.HasExistingState(s.dir.Log, s.dir.Vars, s.dir.Snapshots)
	if err == nil && !exists {
		err = raft.BootstrapCluster(conf, s.dir.Log, s.dir.Vars, s.dir.Snapshots, transport, raft.Configuration{
			Servers: []raft.Server{{ID: conf.LocalID, Address: address}},
		})
	}
	if err != nil {
		return fmt.Errorf("raftstore: read the log: %w", err)
	}
	s.raft, err = raft.NewRaft(conf, s.fsm, s.dir.Log, s.dir.Vars, s.dir.Snapshots, transport)
	if err != nil {
		return fmt.Errorf("raftstore: start: %w", err)
	}
	s.standAtOnce(address, transport)
	return nil
}

// standAtOnce makes the only voter stand for election now: there is no leader
// whose heartbeat it could wait for. The message is the one by which raft
// hands over leadership. If it gets lost, raft stands when its time comes.
func (s *Store) standAtOnce(address raft.ServerAddress, transport *raft.InmemTransport) {
	_, sender := raft.NewInmemTransport("")
	sender.Connect(address, transport)
	defer sender.DisconnectAll()
	err := sender.TimeoutNow(raft.ServerID(s.dir.Identity.Node), address, &raft.TimeoutNowRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax},
	}, &raft.TimeoutNowResponse{})
	if err != nil {
		s.log.Debug("could not stand for election at once", "err", err)
	}
}

func (s *Store) raftConfig() *raft.Config {
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(s.dir.Identity.Node)
	conf.Logger = newHCLog(s.log)
	conf.NotifyCh = s.raftLeads
	conf.NoLegacyTelemetry = true
	// When to take a snapshot is the snapshotter's to say.
	conf.SnapshotThreshold = math.MaxUint64
	conf.SnapshotInterval = 24 * time.Hour
	conf.TrailingLogs = trailingLogs
	return conf
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
		if _, err := s.linearizable(ctx); err == nil {
			return nil
		} else if ctx.Err() != nil || s.ctx.Err() != nil {
			return fmt.Errorf("raftstore: not ready: %w", err)
		}
	}
}

// Status says how the store is.
type Status struct {
	Leadership   Leadership
	Revision     int64 // newest revision applied here
	Compacted    int64 // oldest revision that can be read
	AppliedIndex uint64
	mvcc.Stats
}

// Status returns the present state, without waiting for anything.
func (s *Store) Status() Status {
	view := s.fsm.view()
	lead, _ := s.lead.get()
	return Status{
		Leadership: lead, Revision: view.Revision(), Compacted: view.Compacted(),
		AppliedIndex: s.raft.AppliedIndex(), Stats: view.Stats(),
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
	s.cancel()
	s.lead.close()
	s.dir.Abort() // or raft would wait for a full disk
	err := s.raft.Shutdown().Error()
	s.proposer.stop()
	s.tasks.Wait()
	if err != nil {
		err = fmt.Errorf("raftstore: stop: %w", err)
	}
	return errors.Join(err, s.dir.Close())
}
