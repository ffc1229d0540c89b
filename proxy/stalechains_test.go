// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/services"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestStaleChainsAreDeletedAfterASecond: a chain that no Service needs any more is deleted a second after that began,
// though Services change all the time; one that is needed again stays.
func TestStaleChainsAreDeletedAfterASecond(t *testing.T) {
	netns.RequireNFT(t)
	b := bareNFTables(t, corev1.IPv4Protocol)
	for i := range 3 {
		b.OnServiceAdd(dualService(i))
		b.OnEndpointSliceAdd(sliceOf(dualService(i), discoveryv1.AddressTypeIPv4, services.At("10.42.0.5", "n1", "rs")))
	}
	way := testenv.Must(kubecompat.Field[map[string]time.Time](b.Provider, staleChainsField))(t)
	syncs := 0
	sync := func(full bool) map[string]time.Time {
		t.Helper()
		syncs++
		endpoint := services.At([]string{"10.42.0.5", "10.42.0.6"}[syncs%2], "n1", "rs")
		b.OnEndpointSliceUpdate(nil, sliceOf(dualService(1), discoveryv1.AddressTypeIPv4, endpoint))
		testenv.NoError(t, b.sync(full))
		out := map[string]time.Time{} // by Services' names
		for chain, since := range *way {
			out[strings.Split(chain, "/")[1]] = since
		}
		return out
	}
	sync(true)
	b.OnServiceDelete(dualService(0))
	b.OnServiceDelete(dualService(2))
	first := sync(false)
	testenv.Require(t, !first["s0"].IsZero() && !first["s2"].IsZero(),
		"after two of three Services are gone, these chains are to be deleted: %v", first)
	b.OnServiceAdd(dualService(2))
	if now := sync(false); !now["s2"].IsZero() {
		t.Errorf("a Service is back, and its chain is to be deleted: %v", now)
	}
	b.OnServiceDelete(dualService(2))
	if now := sync(false); !now["s2"].After(first["s2"]) {
		t.Errorf("a Service is gone again, since %v, as if it had not been back: %v", now["s2"], first["s2"])
	}
	b.OnServiceAdd(dualService(2))
	testenv.Eventually(t, 2*time.Minute, "the chain of a Service that is gone is deleted", func() error {
		switch since := sync(false)["s0"]; {
		case !since.IsZero() && !since.Equal(first["s0"]):
			t.Fatalf("after %d syncs a chain is to be deleted a second after %v, not %v", syncs, since, first["s0"])
		case strings.Contains(netns.NFT(t, "list chains ip"), "/s0/"):
			return fmt.Errorf("it is there after %d syncs", syncs)
		}
		return nil
	})
	sync(false)
	testenv.Equal(t, strings.Count(netns.NFT(t, "list table ip kube-proxy"), "dnat to"), 2, "not both Services that are left are served:")
}

// TestStaleDatesAreKept: a chain keeps its first date, and gets a new one after upstream has tried to delete it.
func TestStaleDatesAreKept(t *testing.T) {
	start := time.Now()
	upstream := map[string]time.Time{"a": start}
	s := staleChains{upstream: &upstream}
	for _, step := range []struct {
		name  string
		after time.Duration // when a sync begins, which dates the chain
		gone  bool          // a Service needs the chain again
		want  time.Duration
	}{
		{"the first sync", 0, false, 0},
		{"a sync soon after it", 100 * time.Millisecond, false, 0},
		{"a sync after more than a second", 1200 * time.Millisecond, false, 1200 * time.Millisecond},
		{"a Service needs it", 1300 * time.Millisecond, true, 0},
		{"no Service needs it any more", 1400 * time.Millisecond, false, 1400 * time.Millisecond},
	} {
		delete(upstream, "a")
		if !step.gone {
			upstream["a"] = start.Add(step.after)
		}
		s.synced(start.Add(step.after))
		if got, ok := upstream["a"]; ok == step.gone || ok && !got.Equal(start.Add(step.want)) {
			t.Errorf("%s: the chain is stale: %t, since %v, want %v", step.name, ok, got.Sub(start), step.want)
		}
	}
}
