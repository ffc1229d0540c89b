// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// durations are the metrics that are histograms of durations.
var durations = []struct {
	desc *prometheus.Desc
	of   func(*Counters) *Histogram
}{
	{
		desc("etcd_disk_wal_fsync_duration_seconds", "How long an append to the log takes until it is on disk."),
		func(c *Counters) *Histogram { return c.LogFlush },
	},
	{
		desc("etcd_debugging_snap_save_total_duration_seconds", "How long it takes to write a snapshot, this server's own or one from "+
			"the leader."),
		func(c *Counters) *Histogram { return c.SnapshotSave },
	},
	{
		desc("coracle_store_read_index_duration_seconds", "How long it takes to confirm that a read is linearizable."),
		func(c *Counters) *Histogram { return c.ReadIndex },
	},
}

// numbers are the metrics without labels. A metric whose name ends in _total is a counter. The exceptions are etcd's,
// and are marked.
var numbers = []struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*Sample, *Counters) float64
}{
	{desc("etcd_server_has_leader", "Whether or not a leader exists. 1 is existence, 0 is not."), gauge,
		func(s *Sample, _ *Counters) float64 { return boolValue(s.HasLeader) }},
	{desc("etcd_server_is_leader", "Whether or not this member is a leader. 1 if is, 0 otherwise."), gauge,
		func(s *Sample, _ *Counters) float64 { return boolValue(s.Leads) }},
	{desc("etcd_server_is_learner", "Whether or not this member is a learner. 1 if is, 0 otherwise."), gauge,
		func(s *Sample, _ *Counters) float64 { return boolValue(s.Learner) }},
	{desc("etcd_server_leader_changes_seen_total", "The number of leader changes seen."), counter,
		func(s *Sample, _ *Counters) float64 { return float64(s.LeaderChanges) }},
	{desc("etcd_server_proposals_committed_total", "The index of the last log entry committed."), gauge, // as etcd's
		func(s *Sample, _ *Counters) float64 { return float64(s.Committed) }},
	{desc("etcd_server_proposals_applied_total", "The index of the last log entry applied."), gauge, // as etcd's
		func(s *Sample, _ *Counters) float64 { return float64(s.Applied) }},
	{desc("etcd_server_proposals_pending", "The current number of writes that wait for their answer."), gauge,
		func(_ *Sample, c *Counters) float64 { return float64(c.Pending.Load()) }},
	{desc("etcd_server_proposals_failed_total", "The total number of writes that failed on their way through the log."), counter,
		func(_ *Sample, c *Counters) float64 { return float64(c.ProposalsFailed.Load()) }},
	{desc("etcd_server_slow_read_indexes_total", "The total number of reads whose confirmation failed or took more than 500 ms."), counter,
		func(_ *Sample, c *Counters) float64 { return float64(c.ReadIndexSlow.Load()) }},
	{desc("etcd_server_read_indexes_failed_total", "The total number of reads whose confirmation failed."), counter,
		func(_ *Sample, c *Counters) float64 { return float64(c.ReadIndexFailed.Load()) }},
	{desc("etcd_server_quota_backend_bytes", "How many bytes keys and history may take together."), gauge,
		func(s *Sample, _ *Counters) float64 { return float64(s.QuotaBytes) }},
	{desc("etcd_disk_wal_write_bytes_total", "Total number of bytes written to the log."), gauge, // as etcd's
		func(_ *Sample, c *Counters) float64 { return float64(c.LogBytes.Load()) }},
	{desc("etcd_mvcc_db_total_size_in_bytes", "Bytes of all keys and values in memory, history included."), gauge,
		func(s *Sample, _ *Counters) float64 { return float64(s.TotalBytes) }},
	{desc("etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of all current keys and values."), gauge,
		func(s *Sample, _ *Counters) float64 { return float64(s.LiveBytes) }},
	{desc("etcd_mvcc_range_total", "Total number of ranges seen by this member."), counter,
		func(_ *Sample, c *Counters) float64 { return float64(c.Ranges.Load()) }},
	{desc("etcd_mvcc_put_total", "Total number of puts seen by this member."), counter,
		func(_ *Sample, c *Counters) float64 { return float64(c.Puts.Load()) }},
	{desc("etcd_mvcc_delete_total", "Total number of deletes seen by this member."), counter,
		func(_ *Sample, c *Counters) float64 { return float64(c.Deletes.Load()) }},
	{desc("etcd_mvcc_txn_total", "Total number of txns seen by this member."), counter,
		func(_ *Sample, c *Counters) float64 { return float64(c.Txns.Load()) }},
	{desc("etcd_debugging_mvcc_keys_total", "Total number of keys."), gauge, // as etcd's
		func(s *Sample, _ *Counters) float64 { return float64(s.Keys) }},
	{desc("etcd_debugging_mvcc_current_revision", "The current revision of store."), gauge,
		func(s *Sample, _ *Counters) float64 { return float64(s.Revision) }},
	{desc("etcd_debugging_mvcc_compact_revision", "The revision of the last compaction in store."), gauge,
		func(s *Sample, _ *Counters) float64 { return float64(s.Compacted) }},
	{desc("etcd_debugging_mvcc_watcher_total", "Total number of watchers."), gauge, // as etcd's
		func(s *Sample, _ *Counters) float64 { return float64(s.Watches) }},
	{desc("etcd_debugging_mvcc_slow_watcher_total", "Total number of watchers that read the history to catch up."), gauge, // as etcd's
		func(s *Sample, _ *Counters) float64 { return float64(s.BehindWatches) }},
	{desc("etcd_debugging_mvcc_events_total", "Total number of events sent by this member."), counter,
		func(s *Sample, _ *Counters) float64 { return float64(s.Events) }},
	{desc("etcd_debugging_mvcc_pending_events_total", "Total number of pending events to be sent."), gauge, // as etcd's
		func(s *Sample, _ *Counters) float64 { return float64(s.PendingEvents) }},
	{desc("etcd_debugging_lease_granted_total", "The total number of granted leases."), counter,
		func(_ *Sample, c *Counters) float64 { return float64(c.LeasesGranted.Load()) }},
	{desc("etcd_debugging_lease_revoked_total", "The total number of revoked leases."), counter,
		func(_ *Sample, c *Counters) float64 { return float64(c.LeasesRevoked.Load()) }},

	{desc("coracle_store_voters", "How many servers vote."), gauge,
		func(s *Sample, _ *Counters) float64 { return float64(s.Voters) }},
	{desc("coracle_store_members", "How many servers the store has, those that do not vote included."), gauge,
		func(s *Sample, _ *Counters) float64 { return float64(s.Members) }},
	{desc("coracle_store_term", "The term of the log."), gauge,
		func(s *Sample, _ *Counters) float64 { return float64(s.Term) }},
	{desc("coracle_store_leases", "How many leases there are."), gauge,
		func(s *Sample, _ *Counters) float64 { return float64(s.Leases) }},
	{desc("coracle_store_read_index_rounds_total", "How often the right to serve reads was confirmed; many reads share one round."),
		counter,
		func(s *Sample, _ *Counters) float64 { return float64(s.ReadRounds) }},
	{desc("coracle_store_forwarded_writes_total", "How often writes were passed on to the leader; many share one call."), counter,
		func(s *Sample, _ *Counters) float64 { return float64(s.ForwardedWrites) }},
	{desc("coracle_store_fenced_writes_total", "How many commands in the log had no effect because they were a former leader's."), counter,
		func(_ *Sample, c *Counters) float64 { return float64(c.FencedWrites.Load()) }},
	{desc("coracle_store_disk_stalls_total", "How many appends to the log took more than a second."), counter,
		func(_ *Sample, c *Counters) float64 { return float64(c.Stalls.Load()) }},
	{desc("coracle_store_disk_stalled_seconds_total", "How long those appends took together."), counter,
		func(_ *Sample, c *Counters) float64 { return time.Duration(c.StalledNanos.Load()).Seconds() }},
	{desc("coracle_store_disk_stalled_seconds", "How long the oldest write under way has been waiting for the disk."), gauge,
		func(s *Sample, _ *Counters) float64 { return s.Stalled.Seconds() }},
	{desc("coracle_store_log_size_bytes", "Size of the log's files."), gauge,
		func(s *Sample, _ *Counters) float64 { return float64(s.LogSize) }},
	{desc("coracle_store_snapshot_size_bytes", "Size of the newest snapshot."), gauge,
		func(s *Sample, _ *Counters) float64 { return float64(s.SnapshotSize) }},
	{desc("coracle_store_snapshot_timestamp_seconds", "When the newest snapshot was taken, in seconds since 1970; 0 if there is none."),
		gauge,
		func(s *Sample, _ *Counters) float64 { return seconds(s.SnapshotTime) }},
	{desc("coracle_store_snapshot_bytes_total", "Total number of bytes written as snapshots."), counter,
		func(_ *Sample, c *Counters) float64 { return float64(c.SnapshotBytes.Load()) }},
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
