// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coracle-k8s/coracle/raftstore/etcdapi"
	"github.com/coracle-k8s/coracle/raftstore/metrics"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// Collector returns a Prometheus collector of the store's metrics. It may be used until the store is closed, and never
// blocks.
func (s *Store) Collector() prometheus.Collector {
	return metrics.NewCollector(s.replica.opts.Counters, sampler{s})
}

// sampler implements metrics.Source for a store.
type sampler struct{ s *Store }

// Sample implements metrics.Source.
func (p sampler) Sample() metrics.Sample {
	s := p.s
	view := s.replica.fsm.view()
	stats := view.Stats()
	lead, _ := s.leadership.get()
	out := metrics.Sample{
		Version: etcdapi.Version, Member: s.replica.memberID,
		Leads: lead.Leader, Term: s.replica.raft.CurrentTerm(),
		Committed: s.replica.raft.CommitIndex(), Applied: s.replica.raft.AppliedIndex(),
		Keys: stats.Keys, Revision: view.Revision(), Compacted: view.Compacted(),
		LiveBytes: stats.LiveBytes, TotalBytes: stats.TotalBytes, QuotaBytes: s.quota.bytes(),
		Leases: len(view.Leases()), LogSize: s.replica.dir.Log.Size(), Refusing: s.quota.reason(),
	}
	leader, _ := s.leader.get()
	out.HasLeader, out.LeaderChanges = leader.exists(), s.leader.leaderChanges()
	watches := s.watches.Stats()
	out.Watches, out.BehindWatches, out.PendingEvents, out.Events = watches.Watches, watches.Behind, watches.Queued, watches.Delivered
	out.Stalled = s.replica.dir.Stalled()
	out.SnapshotSize, out.SnapshotTime = s.replica.dir.Snapshots.Newest()
	for _, server := range s.replica.raft.GetConfiguration().Configuration().Servers {
		out.Members++
		if server.Suffrage == raft.Voter {
			out.Voters++
		} else if server.ID == s.replica.id {
			out.Learner = true
		}
	}
	s.replication.sample(&out)
	return out
}

// sample adds the metrics that only a store with several servers has.
func (p *clustered) sample(out *metrics.Sample) {
	out.ForwardedWrites, out.ReadRounds = p.forwarder.forwarded.Load(), p.reads.rounds.Load()
	for _, peer := range p.peers.Peers() {
		if peer.ID == "" {
			continue // callers that are not members
		}
		out.Peers = append(out.Peers, metrics.Peer{
			Member: memberID(string(peer.ID)), LastContact: peer.LastContact,
			Sent: peer.BytesSent, Received: peer.BytesReceived, Failures: peer.Failures, RTT: peer.RTT,
		})
	}
}

// applied is called with every command that was run, from whichever server.
func (s *Store) applied(c mvcc.Command, res mvcc.Result) {
	s.replica.opts.Counters.Applied(res.Response)
	if errors.Is(res.Err, mvcc.ErrFenced) {
		s.replica.opts.Counters.FencedWrites.Add(1)
	}
	s.lessor.observe(c, res)
}

// countedSnapshots counts the Raft snapshots that are written, whether they are this server's own or come from the
// leader.
type countedSnapshots struct {
	raft.SnapshotStore
	counters *metrics.Counters
}

// Create starts a snapshot.
func (c countedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, servers raft.Configuration,
	serversIndex uint64, transport raft.Transport,
) (raft.SnapshotSink, error) {
	sink, err := c.SnapshotStore.Create(version, index, term, servers, serversIndex, transport)
	if err != nil {
		return nil, err
	}
	return &countedSink{SnapshotSink: sink, counters: c.counters, beganAt: time.Now()}, nil
}

type countedSink struct {
	raft.SnapshotSink
	counters *metrics.Counters
	beganAt  time.Time
	bytes    int64
	done     bool
}

func (s *countedSink) Write(p []byte) (int, error) {
	n, err := s.SnapshotSink.Write(p)
	s.bytes += int64(n)
	return n, err
}

// Close completes the snapshot. Raft may call it twice.
func (s *countedSink) Close() error {
	err := s.SnapshotSink.Close()
	if err == nil && !s.done {
		s.counters.SnapshotDone(time.Since(s.beganAt), s.bytes)
	}
	s.done = true
	return err
}
