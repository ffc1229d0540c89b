// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// bareNFTables is the nftables back end without the front, of IPv4 or of both families. It has the networks of
// Services, the node's labels and its tables.
func bareNFTables(t testing.TB, families ...corev1.IPFamily) *nftables {
	t.Helper()
	shared := testenv.Must(netinformers.New(netinformers.Options{Client: fake.NewClientset(), NodeName: "n1", Services: true}))(t)
	o := Options{Informers: shared}
	for _, f := range families {
		if f == corev1.IPv4Protocol {
			o.NodeIPs, o.ClusterCIDRs = append(o.NodeIPs, netip.MustParseAddr(netns.NodeIP)), append(o.ClusterCIDRs, netip.MustParsePrefix("10.42.0.0/16"))
		} else {
			o.NodeIPs, o.ClusterCIDRs = append(o.NodeIPs, netip.MustParseAddr(nodeAddr6)), append(o.ClusterCIDRs, netip.MustParsePrefix("fd42::/56"))
		}
	}
	b := testenv.Must(openNFTables(t.Context(), o))(t)
	t.Cleanup(func() {
		for _, table := range b.(tabled).ownTables() {
			testenv.Check(t, nft.Delete(table))
		}
	})
	b.OnTopologyChange(theNode().Labels)
	b.OnServiceCIDRsChanged(ofServices.Spec.CIDRs)
	testenv.NoError(t, b.prepare())
	return b.(*nftables)
}

// ofProxier finds a field of upstream's proxier of a family, where there are two.
func ofProxier[T any](t *testing.T, b *nftables, family corev1.IPFamily, field string) *T {
	t.Helper()
	at := map[corev1.IPFamily]string{corev1.IPv4Protocol: "ipv4Proxier", corev1.IPv6Protocol: "ipv6Proxier"}[family]
	return testenv.Must(kubecompat.Field[T](b.Provider, []string{at, field}))(t)
}

// untilTidy waits until upstream's proxier has deleted the chains that no Service needs any more.
func untilTidy(t *testing.T, b *nftables) {
	t.Helper()
	testenv.Eventually(t, 2*time.Minute, "what no Service needs is deleted", func() error {
		left, age := 0, time.Hour
		for _, f := range b.families {
			for _, since := range *ofProxier[map[string]time.Time](t, b, f, "staleChains") {
				left, age = left+1, min(age, time.Since(since))
			}
		}
		if left == 0 {
			return nil
		}
		if age > time.Second { // upstream deletes what no sync has seen for a second, and each sync begins that again
			testenv.NoError(t, b.sync(false))
		}
		return fmt.Errorf("there are %d chains, for %v", left, age)
	})
}

// wantAsUpstream compares the tables with those that upstream's proxier writes at once for the Services that there are,
// and takes both away.
func wantAsUpstream(t *testing.T, b *nftables, there []served) {
	t.Helper()
	ours := dumped(t)
	for _, s := range there {
		b.OnServiceDelete(s.service)
	}
	testenv.NoError(t, b.sync(false)) // listeners of health check node ports end
	netns.NFT(t, "delete table ip kube-proxy; delete table ip6 kube-proxy")
	upstreamRules := theirRules(t, there)
	for _, line := range ours {
		testenv.True(t, slices.Contains(upstreamRules, line), "too much: %s", line)
	}
	for _, line := range upstreamRules {
		testenv.True(t, slices.Contains(ours, line), "missing: %s", line)
	}
}

// TestHourlySyncRepairsTables: another program takes rules and elements out of the tables and leaves these. Only the
// tables are polled; the full sync, which comes every hour, writes all of it again.
func TestHourlySyncRepairsTables(t *testing.T) {
	netns.RequireNFT(t)
	for _, drift := range []string{
		"flush table ip kube-proxy", "flush chain ip kube-proxy services", "insert rule ip kube-proxy services return",
		"flush map ip kube-proxy service-ips", "flush set ip kube-proxy cluster-ips",
	} {
		t.Run(drift, func(t *testing.T) {
			b := bareNFTables(t, corev1.IPv4Protocol, corev1.IPv6Protocol)
			all := anyServices(rand.New(rand.NewPCG(1, 2)), 5)
			for _, s := range all {
				b.OnServiceAdd(s.service)
				for _, slice := range s.slices {
					b.OnEndpointSliceAdd(slice)
				}
			}
			testenv.NoError(t, b.sync(true))
			netns.NFT(t, drift)
			if ok, err := b.intact(); !ok || err != nil {
				t.Errorf("tables that are there are not intact: %v, %v", ok, err)
			}
			testenv.NoError(t, b.sync(true))
			untilTidy(t, b)
			wantAsUpstream(t, b, all)
			if ok, err := b.intact(); ok || err != nil {
				t.Errorf("tables that are deleted are intact: %v, %v", ok, err)
			}
		})
	}
}
