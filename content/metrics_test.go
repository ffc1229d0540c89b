// SPDX-License-Identifier: Apache-2.0

package content

import (
	"maps"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestCountersAreMetrics: each counter has a metric of its own.
func TestCountersAreMetrics(t *testing.T) {
	var c Counters
	c.Peers.Add(10)
	c.Peers.Add(20)
	c.Outside.Add(300)
	c.Sent.Add(4000)
	c.Sent.Add(5000)
	c.Sent.Bytes.Add(1) // of a blob that was not sent to its end
	c.Refused.Add(7)
	r := prometheus.NewPedanticRegistry()
	testenv.NoError(t, r.Register(&c))
	got := map[string]float64{}
	for _, family := range testenv.Must(r.Gather())(t) {
		for _, m := range family.Metric {
			name := family.GetName()
			for _, l := range m.Label {
				name += " " + l.GetValue()
			}
			got[name] = m.Counter.GetValue()
		}
	}
	want := map[string]float64{
		"coracle_content_blobs_total peers": 2, "coracle_content_bytes_total peers": 30,
		"coracle_content_blobs_total outside": 1, "coracle_content_bytes_total outside": 300,
		"coracle_content_sent_blobs_total": 2, "coracle_content_sent_bytes_total": 9001, "coracle_content_refused_blobs_total": 7,
	}
	testenv.True(t, maps.Equal(got, want), "the metrics are %v, want %v", got, want)
}
