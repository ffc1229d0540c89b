// SPDX-License-Identifier: Apache-2.0

package metricsgc_test

import (
	"maps"
	"slices"
	"sync"
	"testing"

	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/coracle-k8s/coracle/server/apiserver/metricsgc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

var (
	requests = metrics.NewCounterVec(&metrics.CounterOpts{Name: "test_requests_total", Help: "Requests."}, []string{"verb", "group", "resource"})
	times    = metrics.NewHistogramVec(&metrics.HistogramOpts{Name: "test_seconds", Help: "Times, {in} \"s\"."}, []string{"resource", "group"})
	sets     = metrics.NewGaugeVec(&metrics.GaugeOpts{Name: "test_sets", Help: "Sets."}, []string{"set_name", "set_namespace"})
	plain    = metrics.NewCounter(&metrics.CounterOpts{Name: "test_total", Help: "No labels."})
)

// lines returns how many series each of this test's metrics has.
func lines(t *testing.T) map[string]int {
	t.Helper()
	families := testenv.Must(legacyregistry.DefaultGatherer.Gather())(t)
	out := map[string]int{}
	for _, f := range families {
		if slices.Contains([]string{"test_requests_total", "test_seconds", "test_sets", "test_total"}, f.GetName()) {
			out[f.GetName()] = len(f.GetMetric())
		}
	}
	return out
}

// register is once for a process, in which a test may run many times.
var register = sync.OnceFunc(func() { legacyregistry.MustRegister(requests, times, sets, plain) })

func TestSeriesOfRemovedResourcesAreDropped(t *testing.T) {
	register()
	for _, group := range []string{"a.example.com", "b.example.com"} {
		for _, resource := range []string{"boats", "oars"} {
			requests.WithLabelValues("get", group, resource).Inc()
			requests.WithLabelValues("list", group, resource).Inc()
			times.WithLabelValues(resource, group).Observe(1)
		}
	}
	sets.WithLabelValues("web", "default").Set(1)
	sets.WithLabelValues("web", "gone").Set(1)
	plain.Inc()
	for _, step := range []struct {
		what    string
		drop    func() int
		dropped int
		want    map[string]int
	}{
		{"nothing", func() int { return metricsgc.DropGroupResource("a.example.com", "sails") }, 0,
			map[string]int{"test_requests_total": 8, "test_seconds": 4, "test_sets": 2, "test_total": 1}},
		{"a resource", func() int { return metricsgc.DropGroupResource("a.example.com", "boats") }, 3,
			map[string]int{"test_requests_total": 6, "test_seconds": 3, "test_sets": 2, "test_total": 1}},
		{"a namespace", func() int { return metricsgc.DropNamespace("gone") }, 1,
			map[string]int{"test_requests_total": 6, "test_seconds": 3, "test_sets": 1, "test_total": 1}},
	} {
		testenv.Equal(t, step.drop(), step.dropped, "%s: series dropped:", step.what)
		if got := lines(t); !maps.Equal(got, step.want) {
			t.Errorf("%s: %v left, want %v", step.what, got, step.want)
		}
	}
	requests.WithLabelValues("get", "a.example.com", "boats").Inc()
	testenv.Equal(t, lines(t)["test_requests_total"], 7, "series after a dropped one came back:")
}
