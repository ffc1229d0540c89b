// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/raftstore/election"
	"github.com/coracle-k8s/coracle/raftstore/peer"
)

const (
	// stalledAfter is how long a write may wait for a leader's disk before the others should elect another leader.
	stalledAfter = election.StalledAfter
	// diskStalledAfter is how long a follower's disk may stall before the leader should count it as unresponsive, and
	// in time give its vote to another server.
	diskStalledAfter = 10 * time.Second
	// cachedBytes is how many bytes of the newest log entries are kept in memory for followers.
	cachedBytes = 8 << 20
	// readAtOnce is how many entries raft reads for a message to a follower that lags. A client's largest write is 1.5
	// MB.
	readAtOnce = 8
)

// openRaft starts raft on the opened directory. The first start writes to the directory. If the disk is full it waits
// until ctx ends.
func (s *Store) openRaft(ctx context.Context) error {
	r := s.replica
	conf := r.raftConfig(s.leadership.notices)
	logs := raft.LogStore(r.dir.Log)
	var transport raft.Transport
	var p *clustered // nil in a store without a network
	if r.opts.Network == nil {
		r.dir.Log.SetTrailing(trailingLogs, 0)
		_, alone := raft.NewInmemTransport(r.address)
		s.replication, transport = standalone{r, peer.Closed(), s.leadership, s.writer, alone}.asReplication(), alone
	} else {
		var err error
		if p, err = s.openPeers(); err != nil {
			return errors.Join(err, r.closeListener())
		}
		r.dir.Log.SetTrailing(trailingLogs, trailingBytes)
		s.replication, transport, logs = p.replication(), p.peers.Transport, p.logs
	}
	route := leaderRoute{r, s.leader, s.replication}
	s.cluster = &Cluster{leaderRoute: route, leadership: s.leadership, quota: s.quota, writer: s.writer}
	s.leases = &leases{leaderRoute: route, lessor: s.lessor}
	if p != nil {
		p.calls = callsOf(s.cluster, s.leases, p.forwarder)
	}
	unlessEnded := context.AfterFunc(ctx, r.dir.Abort)
	err := r.bootstrap(conf, logs, transport, s.replication)
	if !unlessEnded() {
		err = errors.Join(ctx.Err(), err)
	}
	if err == nil {
		snapshots := countedSnapshots{r.dir.Snapshots, r.opts.Counters}
		r.raft, err = raft.NewRaft(conf, r.fsm, logs, vars{r.dir.Vars, r.ctx, s.replication}, snapshots, transport)
	}
	if err != nil {
		s.replication.close()
		return fmt.Errorf("raftstore: open the log and start raft: %w", err)
	}
	// It stands for election at once, since no leader exists whose heartbeat it could wait for.
	if isOnlyVoter(r.raft.GetConfiguration().Configuration().Servers, r.id) && !s.replication.StartElection(r.ctx) {
		r.log.Debug("could not start an election at once; the election timeout starts it")
	}
	return nil
}
