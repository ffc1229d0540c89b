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

	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/peer"
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
	// handOverWithin bounds the handing over of the leadership at the end.
	handOverWithin = time.Second
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
		transport, logs = s.peers, s.dir.CachedLog(cachedBytes)
		s.logs = logs
	}
	unlessEnded := context.AfterFunc(ctx, s.dir.Abort)
	err := s.bootstrap(conf, logs, transport)
	if !unlessEnded() {
		err = errors.Join(ctx.Err(), err)
	}
	if err != nil {
		if s.peers != nil {
			err = errors.Join(err, s.peers.Close())
		}
		return fmt.Errorf("raftstore: read or begin the log: %w", err)
	}
	snapshots := countedSnapshots{s.dir.Snapshots, s.opts.Counters}
	s.raft, err = raft.NewRaft(conf, s.fsm, logs, vars{s.dir.Vars, s.ctx}, snapshots, transport)
	if err != nil {
		if s.peers != nil {
			err = errors.Join(err, s.peers.Close())
		}
		return fmt.Errorf("raftstore: start: %w", err)
	}
	if s.aloneVotes() {
		s.standAtOnce()
	}
	return nil
}

func (s *Store) openPeers() (err error) {
	s.peers, err = peer.New(peer.Options{
		Cluster: s.dir.Identity.Cluster, ID: string(s.id), Address: string(s.address),
		Listener: s.opts.Network.Listener, Dial: s.dial, Logger: s.log,
		Withhold: func() bool { return s.dir.Stalled() > stalledAfter },
		Follows:  s.follows,
		Snapshot: s.dir.Log.Snapshot, Install: s.snapshotter.install,
		Handle: func(ctx context.Context, from, method string, body []byte) ([]byte, error) {
			select {
			case <-s.started:
				return s.serveCall(ctx, from, method, body)
			case <-ctx.Done():
				return nil, contextError(ctx)
			case <-s.ctx.Done():
				return nil, ErrClosed
			}
		},
		Timeout: 5 * s.opts.ElectionTimeout,
	})
	if err != nil {
		return fmt.Errorf("raftstore: %w", err)
	}
	s.peers.OnLeader(func() {
		select {
		case s.heard <- struct{}{}:
		default:
		}
	})
	s.peers.OnGone(func(id raft.ServerID) {
		select {
		case <-s.started:
			s.leaderGone(id)
		default:
		}
	})
	return nil
}

// follows says whether raft follows a leader in a term. The term is looked at
// last: it is the one that counts, at a moment after the leader asked.
func (s *Store) follows(leader raft.ServerID, term uint64) bool {
	select {
	case <-s.started:
	default:
		return false
	}
	if s.hung() {
		return false
	}
	_, now := s.raft.LeaderWithID()
	return now == leader && s.raft.State() == raft.Follower && s.raft.CurrentTerm() == term
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

// await waits for what raft was asked to do. Raft may end without an answer:
// its FSM goroutine leaves what waits for it.
func (s *Store) await(future raft.Future) error {
	answer := make(chan error, 1)
	go func() { answer <- future.Error() }()
	select {
	case err := <-answer:
		return err
	case <-s.stopped:
		return raft.ErrRaftShutdown
	}
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
	conf.NotifyCh = s.raftLeads
	conf.NoLegacyTelemetry = true
	// When to take a snapshot is the snapshotter's to say.
	conf.SnapshotThreshold = math.MaxUint64
	conf.SnapshotInterval = 24 * time.Hour
	conf.TrailingLogs = 0 // disk.Log.Trail says what stays
	if s.opts.Network != nil {
		conf.HeartbeatTimeout = s.opts.ElectionTimeout
		conf.ElectionTimeout = s.opts.ElectionTimeout
		// No read relies on the lease, so it may be as long as raft allows.
		conf.LeaderLeaseTimeout = s.opts.ElectionTimeout
		// Followers are told of commits by the transport, at once.
		conf.CommitTimeout = s.opts.ElectionTimeout
	}
	return conf
}

// handOver gives the leadership to another voter, so that a server that stops
// in good order leaves no gap.
func (s *Store) handOver() {
	if lead, _ := s.lead.get(); !lead.Leader || s.peers == nil || !s.othersVote() {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, handOverWithin)
	defer cancel()
	if err := s.TransferLeadership(ctx); err != nil {
		s.log.Warn("could not hand the store's leadership over before stopping", "err", err)
	}
}

// setAside moves a damaged directory away, so that this server can begin again
// with what the others have. It refuses, with the damage, unless there are
// others and they have a leader without this server.
func (s *Store) setAside(ctx context.Context, damage error) error {
	if s.opts.Network == nil || s.opts.ClusterID == "" {
		return damage
	}
	known, err := disk.ReadPeers(s.opts.Dir)
	if err != nil {
		s.log.Warn("the note of the other servers' addresses cannot be used", "err", err)
	}
	for _, address := range s.opts.Join {
		known = append(known, disk.Peer{Address: address})
	}
	if len(known) == 0 {
		return damage
	}
	if err := s.othersLead(ctx, known); err != nil {
		return errors.Join(damage, fmt.Errorf("raftstore: the other servers could not be asked for a copy: %w", err))
	}
	to, err := disk.StartOver(s.opts.Dir, known)
	if err != nil {
		return errors.Join(damage, err)
	}
	s.log.Error("the store's directory is damaged and was moved away; this server starts again with a copy of what the others have",
		"damage", damage, "moved", to)
	return nil
}

// othersLead returns nil once one of the servers says that they have a leader.
func (s *Store) othersLead(ctx context.Context, known []disk.Peer) error {
	caller, err := peer.New(peer.Options{
		Cluster: s.opts.ClusterID, Dial: s.dial, Logger: s.log,
		Timeout: 5 * s.opts.ElectionTimeout,
	})
	if err != nil {
		return err
	}
	defer func() { _ = caller.Close() }() // never fails
	ask := &Store{peers: caller}
	for deadline := time.Now().Add(3 * s.opts.RequestTimeout); ; {
		for _, p := range known {
			if p.Address == s.opts.Network.Address {
				continue
			}
			call, cancel := context.WithTimeout(ctx, time.Second)
			info, err := callAt[infoAnswer](call, ask, p.Address, callInfo, nothing{})
			cancel()
			if err == nil && info.Leader != "" && dialAddress(raft.ServerAddress(info.Leader)) != s.opts.Network.Address {
				return nil
			}
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return errors.Join(errNoAnswer, ctx.Err())
		}
		time.Sleep(retryPause)
	}
}
