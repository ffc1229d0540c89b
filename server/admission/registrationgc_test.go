// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/server/gossipmember"
	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestOldNodeRegistrationsAreCollected: what is kept of a machine goes when it has been no node for long, and not while
// it may be about to register.
func TestOldNodeRegistrationsAreCollected(t *testing.T) {
	claim := func(node, revision string) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceSystem, Name: node + roster.RegistrationSuffix, ResourceVersion: revision, Labels: map[string]string{roster.ManagedBy: "coracle"},
		}}
	}
	other := claim("x", "1")
	other.Name = gossipmember.GossipSecret
	api := fake.NewClientset(claim("node", "1"), claim("gone", "1"), claim("back", "1"), other)
	indexer := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	testenv.NoError(t, indexer.Add(nodeNamed("node")))
	c := &registrationGC{client: api, nodes: listers.NewNodeLister(indexer), log: slog.New(slog.DiscardHandler),
		missingSince: map[string]orphan{}}
	start := time.Now()
	sweep := func(after time.Duration, want ...string) {
		t.Helper()
		testenv.NoError(t, c.sweep(t.Context(), start.Add(after)))
		all := testenv.Must(api.CoreV1().Secrets(metav1.NamespaceSystem).List(t.Context(), metav1.ListOptions{}))(t)
		var got []string
		for _, s := range all.Items {
			got = append(got, s.Name)
		}
		for i := range want {
			want[i] += roster.RegistrationSuffix
		}
		want = append(want, gossipmember.GossipSecret)
		slices.Sort(got)
		slices.Sort(want)
		testenv.EqualSlices(t, got, want, "after %s:", after)
	}
	sweep(0, "node", "gone", "back")
	sweep(orphanTime-time.Minute, "node", "gone", "back")
	// A machine is let in again.
	testenv.NoError(t, api.Tracker().Update(corev1.SchemeGroupVersion.WithResource("secrets"), claim("back", "2"), metav1.NamespaceSystem))
	sweep(orphanTime, "node", "back")
	sweep(2*orphanTime-time.Minute, "node", "back")
	sweep(2*orphanTime, "node")
	// The node is deleted, and registers again in time.
	testenv.NoError(t, indexer.Delete(nodeNamed("node")))
	sweep(3*orphanTime, "node")
	testenv.NoError(t, indexer.Add(nodeNamed("node")))
	sweep(3*orphanTime+time.Minute, "node")
	testenv.NoError(t, indexer.Delete(nodeNamed("node")))
	sweep(4*orphanTime+time.Minute, "node")
	sweep(5*orphanTime + 2*time.Minute)
}
