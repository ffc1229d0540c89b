// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/peer"
)

// replica is this server's copy of the cluster's log and state: the directory, raft, and the state machine that raft
// drives. Most other parts of a store hold it.
type replica struct {
	opts Options
	log  *slog.Logger
	identity
	lifecycle

	dir  *disk.Dir
	raft *raft.Raft
	fsm  *fsm

	raising  chan struct{} // capacity 1: held by the goroutine that changes the level or adds a member
	clockOff clockOff
}

// open opens the directory. A damaged directory is moved away first, if the other servers have a copy of its content.
// grown is called for each append.
func (r *replica) open(ctx context.Context, grown func(int64)) error {
	made := r.opts.Level
	if len(r.opts.Join) > 0 {
		made = r.levelBefore()
	}
	o := disk.Options{
		Newest: r.opts.newest, Level: made, Path: r.opts.Dir, Identity: disk.Identity{Cluster: r.opts.ClusterID, Node: r.opts.NodeID},
		Logger: r.log, Clock: r.opts.Clock, Grown: grown, Flushed: r.opts.Counters.Flushed, Faults: r.opts.Faults,
	}
	dir, err := disk.Open(o)
	if damage := (*DamageError)(nil); errors.As(err, &damage) {
		if err = r.setAside(ctx, err); err == nil {
			o.Level = r.levelBefore()
			dir, err = disk.Open(o)
		}
	}
	if err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	r.dir = dir
	r.identity = identityOf(dir.Identity, r.opts)
	return nil
}

// levelBefore returns the level of a server that does not have its cluster's data yet.
func (r *replica) levelBefore() int { return cmp.Or(r.opts.Level, level.OldestOf(r.opts.newest)) }

// admit returns an error while writes must not be tried: etcd's ErrNoSpace if the disk is full, or Unavailable if it
// fails.
func (r *replica) admit() error {
	switch err := r.dir.Admit(); {
	case errors.Is(err, disk.ErrNoSpace):
		return rpctypes.ErrGRPCNoSpace
	case err != nil:
		return status.Error(codes.Unavailable, err.Error())
	}
	return nil
}

func (r *replica) diskStalled() bool { return r.dir.Stalled() > diskStalledAfter }

func (r *replica) dial(ctx context.Context, address string) (net.Conn, error) {
	return r.opts.Network.Dial(ctx, dialAddress(raft.ServerAddress(address)))
}

func (r *replica) closeListener() error {
	if r.opts.Network == nil {
		return nil
	}
	return r.opts.Network.Listener.Close()
}

func (r *replica) raftConfig(notices chan<- bool) *raft.Config {
	conf := raft.DefaultConfig()
	conf.LocalID, conf.ProtocolVersion = r.id, peer.ProtocolVersion
	conf.Logger = newHCLog(r.log)
	conf.NotifyCh = notices
	conf.NoLegacyTelemetry = true
	// The snapshotter decides when to take a snapshot.
	conf.SnapshotThreshold = math.MaxUint64
	conf.SnapshotInterval = 24 * time.Hour
	conf.TrailingLogs = 0 // disk.Log.SetTrailing sets how much stays
	if r.opts.Network != nil {
		conf.HeartbeatTimeout = leaseFor * r.opts.ElectionTimeout
		conf.ElectionTimeout = candidateFor * r.opts.ElectionTimeout // setTimeouts changes both later
		// No read relies on the lease, so it may be as long as raft allows.
		conf.LeaderLeaseTimeout = leaseFor * r.opts.ElectionTimeout
		// The transport adds entries to a message or removes some, by their bytes (peer.fill).
		conf.MaxAppendEntries = readAtOnce
		// The transport sends commits to the followers at once.
		conf.CommitTimeout = r.opts.ElectionTimeout
	}
	return conf
}
