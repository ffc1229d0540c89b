// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestMetricsShowWhatTheStoreDid(t *testing.T) {
	s := openStore(t, Options{Dir: t.TempDir()})
	ctx := t.Context()
	for _, key := range []string{"a", "b"} {
		testenv.Must(s.api.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte("v")}))(t)
	}
	testenv.Must(s.api.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("a")}))(t)
	testenv.Must(s.api.Range(ctx, &pb.RangeRequest{Key: []byte("b")}))(t)
	testenv.NoError(t, s.replica.raft.Snapshot().Error())
	got := gathered(t, s)
	for name, want := range map[string]float64{
		"etcd_server_has_leader": 1, "etcd_server_is_leader": 1, "etcd_server_leader_changes_seen_total": 1,
		"etcd_mvcc_put_total": 2, "etcd_mvcc_delete_total": 1, "etcd_mvcc_range_total": 1,
		"etcd_debugging_mvcc_keys_total": 1, "etcd_debugging_mvcc_current_revision": 4,
		"etcd_debugging_snap_save_total_duration_seconds": 1, "etcd_server_proposals_pending": 0,
		"coracle_store_voters": 1, "coracle_store_members": 1, "coracle_store_writes_refused": 0,
	} {
		testenv.Equal(t, got[name], want, "%s is", name)
	}
	for _, name := range []string{
		"etcd_disk_wal_fsync_duration_seconds", "etcd_disk_wal_write_bytes_total", "etcd_server_proposals_applied_total",
		"coracle_store_snapshot_bytes_total", "coracle_store_snapshot_size_bytes", "coracle_store_log_size_bytes",
		"etcd_mvcc_db_total_size_in_bytes", "etcd_server_quota_backend_bytes",
	} {
		if got[name] <= 0 {
			t.Errorf("%s is %v", name, got[name])
		}
	}
}

// gathered is each metric's first value: a histogram's count.
func gathered(t *testing.T, s *Store) map[string]float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	testenv.NoError(t, r.Register(s.Collector()))
	families := testenv.Must(r.Gather())(t)
	got := make(map[string]float64)
	for _, f := range families {
		m := f.Metric[0]
		switch f.GetType() {
		case dto.MetricType_COUNTER:
			got[f.GetName()] = m.Counter.GetValue()
		case dto.MetricType_GAUGE:
			got[f.GetName()] = m.Gauge.GetValue()
		case dto.MetricType_HISTOGRAM:
			got[f.GetName()] = float64(m.Histogram.GetSampleCount())
		}
	}
	return got
}

// TestCollectorOfThree checks what servers tell of one another.
func TestCollectorOfThree(t *testing.T) {
	scenario(t, 1, 3, func(c *cluster) {
		t := c.T
		leader := c.leader()
		follower := c.others(leader)[0]
		s := follower.running()
		testenv.Must(s.api.Put(c.ctx, &pb.PutRequest{Key: []byte("a"), Value: []byte("v")}))(t)
		testenv.Must(s.api.Range(c.ctx, &pb.RangeRequest{Key: []byte("a")}))(t)
		for _, name := range []string{
			"etcd_network_peer_round_trip_time_seconds", "etcd_network_peer_sent_bytes_total",
			"etcd_network_peer_received_bytes_total", "coracle_store_peer_contact_timestamp_seconds", "etcd_server_is_leader",
		} {
			// One of the two may have confirmed nothing yet: the write did not need it.
			c.eventually("the leader has measured "+name, 10*time.Second, func() bool { return gathered(t, leader.running())[name] > 0 })
		}
		atFollower := gathered(t, s)
		for _, name := range []string{
			"coracle_store_forwarded_writes_total", "coracle_store_read_index_rounds_total",
			"coracle_store_read_index_duration_seconds", "etcd_server_has_leader", "etcd_mvcc_put_total",
		} {
			if atFollower[name] <= 0 {
				t.Errorf("a follower's %s is %v", name, atFollower[name])
			}
		}
		if atFollower["coracle_store_members"] != 3 || atFollower["etcd_server_is_leader"] != 0 {
			t.Errorf("a follower counts %v members, and leads: %v", atFollower["coracle_store_members"], atFollower["etcd_server_is_leader"])
		}
	})
}
