// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coracle-k8s/coracle/test/testenv"
)

type fixed Sample

func (f fixed) Sample() Sample { return Sample(f) }

// gather scrapes by way of a registry that checks that what is collected is
// what was described.
func gather(t *testing.T, c *Counters, s Sample) map[string]*dto.MetricFamily {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	testenv.NoError(t, r.Register(NewCollector(c, fixed(s))))
	families := testenv.Must(r.Gather())(t)
	out := make(map[string]*dto.MetricFamily)
	for _, f := range families {
		out[f.GetName()] = f
	}
	return out
}

func number(t *testing.T, all map[string]*dto.MetricFamily, name string) float64 {
	t.Helper()
	f := all[name]
	testenv.Require(t, f != nil, "there is no %s", name)
	m := f.Metric[0]
	if m.Gauge != nil {
		return m.Gauge.GetValue()
	}
	return m.Counter.GetValue()
}

func TestCountersAreCollected(t *testing.T) {
	c := NewCounters()
	c.Applied(&pb.TxnResponse{Responses: []*pb.ResponseOp{
		{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{}}},
		{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: &pb.TxnResponse{Responses: []*pb.ResponseOp{
			{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: &pb.DeleteRangeResponse{}}},
			{Response: &pb.ResponseOp_ResponseRange{ResponseRange: &pb.RangeResponse{}}},
		}}}},
	}})
	c.Applied(&pb.PutResponse{})
	c.Applied(nil)
	c.Flushed(1500*time.Millisecond, 0)
	c.ReadIndexDone(time.Second, nil)
	c.ReadIndexDone(time.Millisecond, errors.New("no leader"))
	c.Flushed(3*time.Millisecond, 4096)
	rtt := NewPeerHistogram()
	rtt.Observe(time.Millisecond)
	all := gather(t, c, Sample{
		Version: "3.7.0", Member: 0xabc, HasLeader: true, Applied: 7, Refusing: RefusingQuota,
		Peers: []Peer{{Member: 0xdef, Sent: 10, Received: 20, RTT: rtt}, {Member: 1}},
	})
	for name, want := range map[string]float64{
		"etcd_server_has_leader": 1, "etcd_server_is_leader": 0, "etcd_server_proposals_applied_total": 7,
		"etcd_mvcc_put_total": 2, "etcd_mvcc_delete_total": 1, "etcd_mvcc_range_total": 1, "etcd_mvcc_txn_total": 1,
		"etcd_disk_wal_write_bytes_total": 4096, "coracle_store_disk_stalled_seconds_total": 1.5,
		"etcd_server_read_indexes_failed_total": 1,
		"etcd_server_slow_read_indexes_total":   2, "coracle_store_snapshot_timestamp_seconds": 0,
	} {
		testenv.Equal(t, number(t, all, name), want, "%s is", name)
	}
	for _, m := range all["coracle_store_writes_refused"].Metric {
		if got, want := m.Gauge.GetValue(), boolValue(m.Label[0].GetValue() == "quota"); got != want {
			t.Errorf("refused because of %s: %v, want %v", m.Label[0].GetValue(), got, want)
		}
	}
	if l := all["etcd_network_peer_sent_bytes_total"].Metric[1].Label[0]; l.GetName() != "To" || l.GetValue() != "def" {
		t.Errorf("a peer's label is %v", l)
	}
	if n := len(all["etcd_network_peer_round_trip_time_seconds"].Metric); n != 1 {
		t.Errorf("%d histograms of round trips, want that of the one that has any", n)
	}
}

// TestHistogramBucketsIncludeEtcds checks buckets at and beside their bounds, and that etcd's bounds are among ours.
func TestHistogramBucketsIncludeEtcds(t *testing.T) {
	h := NewHistogram(125*time.Microsecond, 17)
	for i := range 17 {
		bound := 125 * time.Microsecond << i
		if a, b := h.bucket(bound), h.bucket(bound+1); a != i || b != i+1 {
			t.Errorf("%v is in bucket %d, a nanosecond more in %d; want %d and the next", bound, a, b, i)
		}
	}
	if got := h.bucket(-time.Second); got != 0 { // a clock that was set back
		t.Errorf("a negative duration is in bucket %d", got)
	}
	testenv.Equal(t, h.bucket(time.Hour), 17, "an hour is in bucket")
	c := NewCounters()
	c.Flushed(time.Millisecond, 1)
	c.Flushed(time.Hour, 1)
	f := gather(t, c, Sample{})["etcd_disk_wal_fsync_duration_seconds"].Metric[0].Histogram
	testenv.False(t, f.GetSampleCount() != 2 || f.GetSampleSum() != 3600.001, "%d samples, sum %v", f.GetSampleCount(), f.GetSampleSum())
	at := map[float64]uint64{}
	for _, b := range f.Bucket {
		at[b.GetUpperBound()] = b.GetCumulativeCount()
	}
	for i := range 14 {
		bound := 0.001 * float64(int(1)<<i)
		if n, ok := at[bound]; !ok || n != 1 {
			t.Errorf("bucket %v of etcd's: there %v, count %d, want 1", bound, ok, n)
		}
	}
}

func TestCountingDoesNotAllocate(t *testing.T) {
	c := NewCounters()
	resp := any(&pb.PutResponse{})
	if n := testing.AllocsPerRun(100, func() {
		c.Applied(resp)
		c.Flushed(time.Millisecond, 10)
		c.ReadIndexDone(time.Millisecond, nil)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestEveryMetricIsExplained reads the operators' page.
func TestEveryMetricIsExplained(t *testing.T) {
	page := testenv.Must(os.ReadFile("../../docs/operations/store.md"))(t)
	for name := range gather(t, NewCounters(), Sample{Peers: []Peer{{RTT: NewPeerHistogram()}}}) {
		testenv.Contains(t, string(page), "`"+name+"`", "docs/operations/store.md does not explain %s:", name)
	}
}
