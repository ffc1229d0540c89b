// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// stalledAfter is how long a write may wait for the disk before the others
	// are to elect another leader.
	stalledAfter = time.Second
	// hungAfter is how long a follower's disk may stall before the leader is to
	// count the follower as silent, and give its vote to another one in time.
	hungAfter = 10 * time.Second
	// cachedBytes is how much of the log's end is kept in memory for followers.
	cachedBytes = 8 << 20
)

// openRaft starts raft on the opened directory. The first start writes to it,
// and waits on a full disk until ctx ends.
func (s *Store) openRaft(ctx context.Context) error {
	conf := s.raftConfig()
	logs := raft.LogStore(s.dir.Log)
	var transport raft.Transport
	if s.opts.Network == nil {
		s.dir.Log.Trail(trailingLogs, 0)
		_, s.alone = raft.NewInmemTransport(s.address)
		transport = s.alone
	} else {
		if err := s.openPeers(); err != nil {
			return err
		}
		s.dir.Log.Trail(trailingLogs, trailingBytes)
		s.peers.logs = s.dir.CachedLog(cachedBytes)
		transport, logs = s.peers.Transport, s.peers.logs
	}
	unlessEnded := context.AfterFunc(ctx, s.dir.Abort)
	err := s.bootstrap(conf, logs, transport)
	if !unlessEnded() {
		err = errors.Join(ctx.Err(), err)
	}
	if err == nil {
		snapshots := countedSnapshots{s.dir.Snapshots, s.opts.Counters}
		s.raft, err = raft.NewRaft(conf, s.fsm, logs, vars{s.dir.Vars, s.ctx, s.peers}, snapshots, transport)
	}
	if err != nil && s.peers != nil {
		err = errors.Join(err, s.peers.Close())
	}
	if err != nil {
		return fmt.Errorf("raftstore: open the log and start raft: %w", err)
	}
	if s.aloneVotes() {
		s.standAtOnce()
	}
	return nil
}

func (s *Store) hung() bool { return s.dir.Stalled() > hungAfter }

func (s *Store) dial(ctx context.Context, address string) (net.Conn, error) {
	return s.opts.Network.Dial(ctx, dialAddress(raft.ServerAddress(address)))
}

func (s *Store) closeListener() error {
	if s.opts.Network == nil || s.peers != nil {
		return nil
	}
	return s.opts.Network.Listener.Close()
}

// aloneVotes says whether this server needs nobody to be elected.
func (s *Store) aloneVotes() bool {
	alone := false
	for _, server := range s.raft.GetConfiguration().Configuration().Servers {
		if server.Suffrage == raft.Voter {
			if server.ID != s.id {
				return false
			}
			alone = true
		}
	}
	return alone
}

// standAtOnce makes the only voter stand for election now: there is no leader
// whose heartbeat it could wait for. The message is the one by which raft
// hands over leadership. If it gets lost, raft stands when its time comes.
func (s *Store) standAtOnce() {
	if s.peers != nil {
		s.peers.Stand(s.ctx)
		return
	}
	_, from := raft.NewInmemTransport("")
	from.Connect(s.address, s.alone)
	defer from.DisconnectAll()
	err := from.TimeoutNow(s.id, s.address, &raft.TimeoutNowRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax},
	}, &raft.TimeoutNowResponse{})
	if err != nil {
		s.log.Debug("could not stand for election at once", "err", err)
	}
}

func (s *Store) raftConfig() *raft.Config {
	conf := raft.DefaultConfig()
	conf.LocalID = s.id
	conf.Logger = newHCLog(s.log)
	conf.NotifyCh = s.leadership.notices
	conf.NoLegacyTelemetry = true
	// When to take a snapshot is the snapshotter's to say.
	conf.SnapshotThreshold = math.MaxUint64
	conf.SnapshotInterval = 24 * time.Hour
	conf.TrailingLogs = 0 // disk.Log.Trail says what stays
	if s.opts.Network != nil {
		conf.HeartbeatTimeout = s.opts.ElectionTimeout
		conf.ElectionTimeout = candidateFor * s.opts.ElectionTimeout // both until setTimers says otherwise
		// No read relies on the lease, so it may be as long as raft allows.
		conf.LeaderLeaseTimeout = s.opts.ElectionTimeout
		// Followers are told of commits by the transport, at once.
		conf.CommitTimeout = s.opts.ElectionTimeout
	}
	return conf
}
