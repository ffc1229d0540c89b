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
	// readAtOnce is how many entries raft reads for a message to a follower that lags. A client's largest write is 1.5
	// MB.
	readAtOnce = 8
)

// openRaft starts raft on the opened directory. The first start writes to it,
// and waits on a full disk until ctx ends.
func (s *Store) openRaft(ctx context.Context) error {
	conf := s.raftConfig()
	logs := raft.LogStore(s.dir.Log)
	var transport raft.Transport
	if s.opts.Network == nil {
		s.dir.Log.Trail(trailingLogs, 0)
		_, alone := raft.NewInmemTransport(s.address)
		s.replication, transport = standalone{s, alone}, alone
	} else {
		p, err := s.openPeers()
		if err != nil {
			return errors.Join(err, s.closeListener())
		}
		s.dir.Log.Trail(trailingLogs, trailingBytes)
		p.logs = s.dir.CachedLog(cachedBytes)
		s.replication, transport, logs = p, p.Transport, p.logs
	}
	unlessEnded := context.AfterFunc(ctx, s.dir.Abort)
	err := s.bootstrap(conf, logs, transport)
	if !unlessEnded() {
		err = errors.Join(ctx.Err(), err)
	}
	if err == nil {
		snapshots := countedSnapshots{s.dir.Snapshots, s.opts.Counters}
		s.raft, err = raft.NewRaft(conf, s.fsm, logs, vars{s.dir.Vars, s.ctx, s.replication}, snapshots, transport)
	}
	if err != nil {
		s.replication.close()
		return fmt.Errorf("raftstore: open the log and start raft: %w", err)
	}
	// Now, for there is no leader whose heartbeat it could wait for.
	if isOnlyVoter(s.raft.GetConfiguration().Configuration().Servers, s.id) && !s.replication.Stand(s.ctx) {
		s.log.Debug("could not stand for election at once; will when its time comes")
	}
	return nil
}

// Stalled returns how long the oldest write that waits for the disk has been doing so, 0
// if there is none. Until it ends this server learns of no newer write.
func (s *Store) Stalled() time.Duration { return s.dir.Stalled() }

// TakenOut says whether the others have a leader and do not count this server among
// them, as far as they could be asked: it serves nobody any more.
func (s *Store) TakenOut() bool {
	w := s.without.Load()
	return !s.hasLeader() && w != nil && w.removed
}

// Counted says whether another server has said since this start, and none has denied since, that the cluster counts
// this one: by leading it, or when it was asked.
func (s *Store) Counted() bool { return s.counted.Load() }

// CutOff says whether the others have a leader whom this server does not hear although they count it: another server,
// OtherLeader, reaches it.
func (s *Store) CutOff() bool {
	w := s.without.Load()
	return !s.hasLeader() && w != nil && !w.removed && w.address != ""
}

func (s *Store) hasLeader() bool {
	known, _ := s.leader.presence()
	return known
}

// OtherLeader is the address of another server that leads, as far as this one knows, or was told when it was taken out;
// of one that reaches it if this server is cut off from it alone; "" if there is none. It may be one that this server
// does not know as a member: while its disk hangs it learns of none.
func (s *Store) OtherLeader() string {
	lead, _ := s.leader.get()
	if w := s.without.Load(); w != nil && !lead.known() {
		return w.address
	}
	if lead.Self {
		return ""
	}
	return dialAddress(lead.Address)
}

func (s *Store) hung() bool { return s.dir.Stalled() > hungAfter }

func (s *Store) dial(ctx context.Context, address string) (net.Conn, error) {
	return s.opts.Network.Dial(ctx, dialAddress(raft.ServerAddress(address)))
}

func (s *Store) closeListener() error {
	if s.opts.Network == nil {
		return nil
	}
	return s.opts.Network.Listener.Close()
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
		conf.HeartbeatTimeout = leaseFor * s.opts.ElectionTimeout
		conf.ElectionTimeout = candidateFor * s.opts.ElectionTimeout // both until setTimers says otherwise
		// No read relies on the lease, so it may be as long as raft allows.
		conf.LeaderLeaseTimeout = leaseFor * s.opts.ElectionTimeout
		// The transport adds more, or takes some away: it goes by bytes (Transport.fill).
		conf.MaxAppendEntries = readAtOnce
		// Followers are told of commits by the transport, at once.
		conf.CommitTimeout = s.opts.ElectionTimeout
	}
	return conf
}
