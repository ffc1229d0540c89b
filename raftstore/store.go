// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

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
	progress  *progress
	proposer  *proposer
	raft      *raft.Raft
	raftLeads chan bool
	logs      *raftboltdb.BoltStore

	ctx    context.Context // ends when the store closes
	cancel context.CancelFunc
	tasks  sync.WaitGroup // runLeadership, hub.run, every watch
	once   sync.Once
	err    error // of Close
}

// Open opens the store in o.Dir, making a new one-server cluster if there is
// none. It returns before the store has a leader: see WaitReady.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	s := &Store{
		opts: o, log: o.Logger, lead: newLeadership(),
		clusterID: clusterNumber(o.ClusterID), memberID: memberID(o.NodeID),
		raftLeads: make(chan bool, 16), // raft blocks on it; the reader is rarely late
	}
	s.hub = newHub(func() *mvcc.View { return s.fsm.view().View })
	s.fsm = newFSM(s.hub.notify)
	s.progress = &progress{
		clock: o.Clock, interval: o.ProgressInterval, watchers: make(map[*watcher]struct{}),
		revision: func() int64 { return s.fsm.view().Revision() },
	}
	s.lessor = newLessor(o.Clock, s.expire)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.openRaft(ctx); err != nil {
		s.cancel()
		return nil, err
	}
	s.proposer = newProposer(s.raft, s.admit)
	s.proposer.start()
	s.tasks.Go(func() { s.hub.run(s.ctx) })
	s.tasks.Go(func() { s.progress.run(s.ctx) })
	s.tasks.Go(func() { s.runLeadership(s.ctx) })
	return s, nil
}

func (s *Store) openRaft(ctx context.Context) error {
	if err := os.MkdirAll(s.opts.Dir, 0o700); err != nil {
		return fmt.Errorf("raftstore: make the directory: %w", err)
	}
	bolt, err := raftboltdb.New(raftboltdb.Options{
		Path:        filepath.Join(s.opts.Dir, "raft.db"),
		BoltOptions: &bbolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType},
	})
	if err != nil {
		return fmt.Errorf("raftstore: open the log: %w", err)
	}
	s.logs = bolt
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(s.opts.Dir, 2, newHCLog(s.log))
	if err != nil {
		return errors.Join(fmt.Errorf("raftstore: open the snapshots: %w", err), bolt.Close())
	}
	conf := s.raftConfig()
	address, transport := raft.NewInmemTransport(raft.ServerAddress(s.opts.NodeID))
	exists, err := raft.HasExistingState(bolt, bolt, snapshots)
	if err == nil && !exists {
		err = raft.BootstrapCluster(conf, bolt, bolt, snapshots, transport, raft.Configuration{
			Servers: []raft.Server{{ID: conf.LocalID, Address: address}},
		})
	}
	if err != nil {
		return errors.Join(fmt.Errorf("raftstore: read the log: %w", err), bolt.Close())
	}
	s.raft, err = raft.NewRaft(conf, s.fsm, bolt, bolt, snapshots, transport)
	if err != nil {
		return errors.Join(fmt.Errorf("raftstore: start: %w", err), bolt.Close())
	}
	return nil
}

func (s *Store) raftConfig() *raft.Config {
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(s.opts.NodeID)
	conf.Logger = newHCLog(s.log)
	conf.NotifyCh = s.raftLeads
	conf.NoLegacyTelemetry = true
	// One voter has nobody to wait for.
	conf.HeartbeatTimeout = 100 * time.Millisecond
	conf.ElectionTimeout = 100 * time.Millisecond
	conf.LeaderLeaseTimeout = 100 * time.Millisecond
	return conf
}

// admit refuses writes that must not be tried now.
func (s *Store) admit() error { return nil }

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

// Close stops the store and waits until nothing of it runs. Writes that were
// not acknowledged by then fail, with their outcome open.
func (s *Store) Close(ctx context.Context) error {
	s.once.Do(func() { s.err = s.close() })
	return s.err
}

func (s *Store) close() error {
	s.cancel()
	s.lead.close()
	err := s.raft.Shutdown().Error()
	s.proposer.stop()
	s.tasks.Wait()
	if err != nil {
		err = fmt.Errorf("raftstore: stop: %w", err)
	}
	return errors.Join(err, s.logs.Close())
}
