// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/proxy"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/uml"
)

func TestMain(m *testing.M) { os.Exit(uml.Main(m, netns.Main)) }

func testServices(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	b.service(t, nil)
	b.endpoints(t, "10.42.0.2", "10.42.0.6")
	a := b.pods["10.42.0.2"]

	reaches(t, a, "pod to cluster IP", clusterIP+":80")
	reaches(t, b.outside, "outside to cluster IP", clusterIP+":80")
	reaches(t, b.outside, "outside to node port", nodeAddr+":30080")
	reaches(t, a, "pod to node port", nodeAddr+":30080")
	reaches(t, here{}, "node to node port", nodeAddr+":30080")
	if _, _, err := ask(here{}, "127.0.0.1:30080"); err == nil {
		t.Error("node port answers on loopback: upstream's nftables mode does not")
	}
	seen := map[string]bool{}
	for range 200 {
		server, peer := netns.Reach(t, a, clusterIP+":80")
		seen[server] = true
		testenv.Require(t, server != "10.42.0.6" || peer == "10.42.0.2",
			"a pod's address was replaced by %s on the way to another pod", peer)
	}
	testenv.True(t, len(seen) == 2, "200 connections reached %v, want both endpoints", seen)
	if _, peer := netns.Reach(t, b.outside, nodeAddr+":30080"); peer == outsideAddr {
		t.Errorf("traffic from outside to a node port came from %q, want it masqueraded", peer)
	}

	b.endpoints(t, "10.42.0.6")
	eventually(t, "only the endpoint that is left answers", func() error {
		for range 20 {
			if server, _, err := ask(a, clusterIP+":80"); err != nil || server != "10.42.0.6" {
				return fmt.Errorf("got %q: %w", server, err)
			}
		}
		return nil
	})
	b.endpoints(t)
	fails(t, a, "no endpoint", clusterIP+":80")
	b.endpoints(t, "10.42.0.6")
	reaches(t, a, "endpoint again", clusterIP+":80")

	if mode != kubeProxy {
		if h := b.proxy.Health(); !h.Synced || h.Err != nil || h.LastDuration == 0 {
			t.Errorf("health %+v", h)
		}
		t.Logf("a sync with one Service takes %v", b.proxy.Health().LastDuration)
	}
	b.stop()
	reaches(t, a, "while the agent is down", clusterIP+":80")
	b.start(t)
	b.removeService()
	fails(t, a, "deleted Service", clusterIP+":80")
	fails(t, b.outside, "deleted Service", nodeAddr+":30080")
}

func testSessionAffinity(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	b.service(t, func(s *corev1.Service) {
		timeout := int32(60)
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
	})
	b.endpoints(t, "10.42.0.2", "10.42.0.6")
	reaches(t, b.outside, "cluster IP", clusterIP+":80")
	first, _ := netns.Reach(t, b.outside, clusterIP+":80")
	for range 30 {
		if got, _ := netns.Reach(t, b.outside, clusterIP+":80"); got != first {
			t.Fatalf("got %s, want %s as before", got, first)
		}
	}
}

func TestServiceCIDRAddedLaterIsGuarded(t *testing.T) {
	b := newTestbed(t, proxy.ModeNFTables)
	b.service(t, nil)
	b.endpoints(t, "10.42.0.2")
	reaches(t, b.outside, "cluster IP", clusterIP+":80")
	b.api.Put(&networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "more"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.99.0.0/16"}}})
	eventually(t, "unallocated addresses of the new CIDR are rejected", func() error {
		if out := netns.NFT(t, "list table ip kube-proxy"); !strings.Contains(out, "10.99.0.0/16") {
			return fmt.Errorf("the rules do not name it")
		}
		return nil
	})
}

func TestDualStackServiceHasRulesOfBothFamilies(t *testing.T) {
	netns.RequireNFT(t)
	ctx, cancel := context.WithCancel(t.Context())
	client := fake.NewClientset(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: corev1.ServiceSpec{
			ClusterIP: clusterIP, ClusterIPs: []string{clusterIP, "fd43::9"}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	})
	record := filepath.Join(t.TempDir(), "service-proxy")
	shared, p := proxy.NewTestProxy(t, ctx, client, proxy.Options{
		NodeIPs:      []netip.Addr{netip.MustParseAddr(nodeAddr), netip.MustParseAddr("2001:db8::1")},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/56")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("fd43::/112")},
		RecordFile:   record,
	})
	done := make(chan error, 2) // one result each
	go func() { done <- shared.Run(ctx) }()
	go func() { done <- p.Run(ctx) }()
	for table, want := range map[string]string{"ip": clusterIP, "ip6": "fd43::9"} {
		eventually(t, table, func() error {
			if out := netns.NFT(t, "list ruleset "+table); !strings.Contains(out, want) {
				return fmt.Errorf("the rules do not name %s", want)
			}
			return nil
		})
	}
	eventually(t, "health", func() error {
		if h := p.Health(); !h.Synced || h.Err != nil {
			return fmt.Errorf("%+v", h)
		}
		return nil
	})
	cancel()
	for range 2 {
		testenv.Check(t, <-done)
	}
	testenv.Check(t, testenv.Err(nft.RemoveServiceRules(record)))
}

// A kernel's refusal of the rules is reported, and the sync is tried again.
func TestFailedSyncIsReported(t *testing.T) {
	b := newTestbed(t, proxy.ModeNFTables)
	b.service(t, nil)
	b.endpoints(t, "10.42.0.2")
	reaches(t, b.outside, "cluster IP", clusterIP+":80")
	// A chain of ours with another hook cannot be altered in place, so that every transaction fails.
	netns.NFT(t, "delete table ip kube-proxy; add table ip kube-proxy; add chain ip kube-proxy nat-prerouting { type filter hook input priority 5; }")
	b.endpoints(t, "10.42.0.6")
	eventually(t, "the error is reported", func() error {
		if h := b.proxy.Health(); h.Err == nil {
			return fmt.Errorf("health %+v", h)
		}
		return nil
	})
	netns.NFT(t, "delete table ip kube-proxy")
	reaches(t, b.outside, "cluster IP once the obstacle is gone", clusterIP+":80")
	eventually(t, "the error is gone", func() error {
		if h := b.proxy.Health(); h.Err != nil {
			return h.Err
		}
		return nil
	})
}

func testFlushedRulesetHeals(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	b.service(t, nil)
	b.endpoints(t, "10.42.0.2")
	reaches(t, b.outside, "cluster IP", clusterIP+":80")
	netns.NFT(t, "flush ruleset")
	if b.differs(t, "rules that another program has flushed come back with the next change only") {
		for range 3 {
			if server, _, err := ask(b.outside, clusterIP+":80"); err == nil {
				t.Errorf("%s answers, though nothing has changed", server)
			}
		}
		b.endpoints(t, "10.42.0.6")
	}
	reaches(t, b.outside, "cluster IP after a flush", clusterIP+":80")
}

func TestStopLeavesNoGoroutine(t *testing.T) {
	netns.Require(t)
	before := goleak.IgnoreCurrent() // listeners of health check node ports, which are upstream's, may have to end yet
	t.Run("run", func(t *testing.T) {
		b := newTestbed(t, proxy.ModeNFTables)
		b.service(t, nil)
		b.endpoints(t, "10.42.0.2")
		reaches(t, b.outside, "cluster IP", clusterIP+":80")
	})
	testenv.NoGoroutineLeft(t, before)
}

func TestMissingNFTIsReported(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	shared, err := netinformers.New(netinformers.Options{Client: fake.NewClientset(), NodeName: "n1", Services: true})
	testenv.NoError(t, err)
	_, err = proxy.New(t.Context(), proxy.Options{
		NodeIPs:      []netip.Addr{netip.MustParseAddr(nodeAddr)},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		Informers:    shared,
	})
	testenv.WantError(t, err, "nft")
}
