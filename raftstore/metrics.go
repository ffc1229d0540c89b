// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"errors"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/metrics"
)

// Collector gives the store's numbers to Prometheus. It may be used until the
// store is closed, and waits for nothing.
func (s *Store) Collector() prometheus.Collector {
	return metrics.NewCollector(s.opts.Counters, sampler{s})
}

// sampler is the store as its metrics see it.
type sampler struct{ s *Store }

// Sample implements metrics.Source.
func (p sampler) Sample() metrics.Sample {
	s := p.s
	view := s.fsm.view()
	stats := view.Stats()
	lead, _ := s.lead.get()
	out := metrics.Sample{
		Version: etcdVersion, Member: s.memberID,
		Leads: lead.Leader, Term: s.raft.CurrentTerm(), Committed: s.raft.CommitIndex(), Applied: s.raft.AppliedIndex(),
		Keys: stats.Keys, Revision: view.Revision(), Compacted: view.Compacted(),
		LiveBytes: stats.LiveBytes, TotalBytes: stats.TotalBytes, QuotaBytes: s.opts.QuotaBytes,
		Leases: len(view.Leases()), LogSize: s.dir.Log.Size(), Refusing: p.refusing(stats.TotalBytes),
	}
	_, leader := s.raft.LeaderWithID()
	out.HasLeader = leader != ""
	out.Watches, out.BehindWatches, out.PendingEvents = s.hub.count()
	out.SnapshotSize, out.SnapshotTime = s.dir.Snapshots.Newest()
	for _, server := range s.raft.GetConfiguration().Configuration().Servers {
		out.Members++
		if server.Suffrage == raft.Voter {
			out.Voters++
		} else if memberID(string(server.ID)) == s.memberID {
			out.Learner = true
		}
	}
	return out
}

func (p sampler) refusing(totalBytes int64) metrics.Refusal {
	switch err := p.s.dir.Refusing(); {
	case errors.Is(err, disk.ErrNoSpace):
		return metrics.RefusingSpace
	case err != nil:
		return metrics.RefusingFailing
	case totalBytes >= p.s.opts.QuotaBytes:
		return metrics.RefusingQuota
	}
	return metrics.RefusingNone
}

// count is how many watchers there are, how many of them read the history, and
// how many versions wait in queues.
func (h *hub) count() (all, behind, queued int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.eachWatcher(func(w *watcher) {
		all++
		if w.behind {
			behind++
		}
		queued += len(w.queue)
	})
	return all, behind, queued
}
