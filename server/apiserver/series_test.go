// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// testNativeHistograms wants none, in a registry that has seen many requests.
func testNativeHistograms(t *testing.T, _ *running) {
	families := testenv.Must(legacyregistry.DefaultGatherer.Gather())(t)
	histograms := 0
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if m.GetHistogram() == nil {
				continue
			}
			histograms++
			if m.GetHistogram().Schema != nil {
				t.Fatalf("%s is a native histogram", f.GetName())
			}
		}
	}
	testenv.True(t, histograms != 0, "there are no histograms at all")
}

// testSeries wants the metrics of a custom resource to go with its definition, and no others.
func testSeries(t *testing.T, s *running) {
	count := func(label string) int { return strings.Count(string(get(t, s, "/metrics", "text/plain")), label) }
	const gone, stays = `group="example.com"`, `resource="customresourcedefinitions"`
	if n := count(gone); n == 0 {
		t.Fatal("a custom resource that was used has no metrics")
	}
	c := testenv.Must(dynamic.NewForConfig(s.admin()))(t)
	definitions := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	testenv.NoError(t, c.Resource(definitions).Delete(t.Context(), "boats.example.com", metav1.DeleteOptions{}))
	eventually(t, "the end of the custom resource's metrics", func() error {
		if n := count(gone); n > 0 {
			return fmt.Errorf("%d are left", n)
		}
		return nil
	})
	testenv.True(t, count(stays) != 0, "the metrics of a resource that is still served are gone")
}
