// SPDX-License-Identifier: Apache-2.0

package server

import (
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestMetricsOfTwoServers: the registry is the process', and tests run several servers in one.
func TestMetricsOfTwoServers(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	gauge := func(v float64) prometheus.Collector {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "coracle_test_server"})
		g.Set(v)
		return g
	}
	shown := func() float64 {
		t.Helper()
		families := testenv.Must(legacyregistry.DefaultGatherer.Gather())(t)
		for _, f := range families {
			if f.GetName() == "coracle_test_server" {
				return f.Metric[0].Gauge.GetValue()
			}
		}
		return 0
	}
	stopFirst := serveMetrics(gauge(1), log)
	stopSecond := serveMetrics(gauge(2), log)
	if got := shown(); got != 1 {
		t.Errorf("two servers: %v is shown, want the first", got)
	}
	stopSecond()
	if got := shown(); got != 1 {
		t.Errorf("the second server ended: %v is shown, want the first", got)
	}
	stopFirst()
	testenv.Equal(t, shown(), 0, "both ended: is shown:")
	stopThird := serveMetrics(gauge(3), log)
	testenv.Equal(t, shown(), 3, "a later server: is shown:")
	stopThird()
}
