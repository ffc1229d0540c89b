//go:build bench

// SPDX-License-Identifier: Apache-2.0

package benchnet

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/proc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestPolicies measures what policies cost connections and packets, how fast changes of them arrive in the kernel, and
// what they take at their limits.
func TestPolicies(t *testing.T) {
	t.Run("traffic", benchPolicyTraffic)
	t.Run("changes", benchPolicyChanges)
	t.Run("limits", benchPolicyLimits)
}

// peers are two pods of a node that its policies allow to speak with one another.
func peers(t *testing.T, name string, objects []runtime.Object) route {
	s := newSite(t, name, 1, func(c *nodeConfig) { c.Policies = true; c.Sandboxes = residents(100) })
	s.api.Put(namespace("default"))
	for _, n := range []string{"a", "b"} {
		s.api.Put(pod("default", n, "n1", "", map[string]string{"app": "pod"}))
	}
	s.api.Put(objects...)
	a, b := s.nodes[0].pod("a"), s.nodes[0].pod("b")
	for _, p := range []*labPod{a, b} {
		s.api.Put(pod("default", p.id, "n1", p.ip.String(), map[string]string{"app": "pod"}))
	}
	r := route{from: a, to: b.ip, sink: serve(t, b)}
	eventually(t, name+": the pods reach one another", func() error { _, err := r.connect(echoPort, 1, time.Millisecond); return err })
	return r
}

func benchPolicyTraffic(t *testing.T) {
	netns.RequireNFT(t)
	others := town(1000, 200, 0)
	var many []runtime.Object
	for i := range 50 {
		many = append(many, policy("default", fmt.Sprint("x", i), "pod", fmt.Sprint("x", i)))
	}
	rows := []struct {
		name    string
		objects []runtime.Object
	}{
		{"no policy", nil},
		{"200 policies for other pods", others},
		{"a policy for both pods", []runtime.Object{policy("default", "zz", "pod", "pod")}},
		{"that, and 200 for other pods", append([]runtime.Object{policy("default", "zz", "pod", "pod")}, others...)},
		{"51 policies for both pods, the last allows", append(many, policy("default", "zz", "pod", "pod"))},
	}
	window := pick(2*time.Second, 300*time.Millisecond)
	var variants []variant
	for i, c := range rows {
		r := peers(t, fmt.Sprint("pol", i), c.objects)
		variants = append(variants, variant{c.name, func() (sample, error) {
			out := sample{}
			s, err := r.connect(echoPort, 4, window)
			prefixed("new", s, out)
			if err == nil {
				s, err = r.pingPong(unix.SOCK_STREAM, echoPort, 4, window)
				prefixed("request", s, out)
			}
			if err == nil {
				s, err = r.stream(window)
				prefixed("TCP", s, out)
			}
			return out, err
		}})
	}
	compare(t, "Two pods of one node: new connections by four clients, 64 bytes there and back on four connections, one that sends as fast as it can", pick(5, 1), []column{
		{name: "new /s", format: "%.0f", ratio: true}, {name: "new CPU µs", ratio: true},
		{name: "request /s", format: "%.0f", ratio: true}, {name: "request CPU µs", format: "%.2f", ratio: true},
		{name: "TCP Gbit/s", ratio: true}, {name: "TCP CPU ms/GB", format: "%.0f", ratio: true},
	}, variants)
}

func benchPolicyChanges(t *testing.T) {
	netns.RequireNFT(t)
	s := newSite(t, "chg", 1, func(c *nodeConfig) { c.Policies = true; c.Sandboxes = residents(100) })
	s.api.Put(town(1000, 200, 0)...)
	n := s.nodes[0]
	testenv.Must(settled(n.ns, 3*time.Second))(t)
	// Each is done and undone.
	relabelled := func(app string) runtime.Object {
		return pod("ns0", "p500", "far", "10.42.130.1", map[string]string{"app": app})
	}
	extra := policy("ns1", "extra", "a1", "a5")
	variants := []variant{
		{"a pod elsewhere gets another label", n.rewrites(func() { s.api.Put(relabelled("a0")) }, func() { s.api.Put(relabelled("a5")) })},
		{"a policy comes or goes", n.rewrites(func() { s.api.Put(extra.DeepCopy()) }, func() { s.api.Remove(extra) })},
	}
	compare(t, "Changes among 1,000 pods and 200 policies, 100 of the pods on this node: until nftables have changed", pick(15, 2), []column{
		{name: "p50 ms"}, {name: "CPU ms/change"}, {name: "anon MB"},
	}, variants)
}

// rewrites measures two changes that undo one another.
func (n *labNode) rewrites(one, other func()) func() (sample, error) {
	return func() (sample, error) {
		cpu := n.cpu()
		var took []float64
		for _, change := range []func(){one, other} {
			d, err := untilWritten(n.ns, change)
			if err == nil {
				_, err = settled(n.ns, 500*time.Millisecond)
			}
			if err != nil {
				return nil, err
			}
			took = append(took, milliseconds(d))
		}
		return sample{"p50 ms": (took[0] + took[1]) / 2, "CPU ms/change": milliseconds(n.cpu()-cpu) / 2, "anon MB": n.anonMB()}, nil
	}
}

// benchPolicyLimits fills a node with as much as its policies may take: nearly 300,000 rules and elements, of three
// namespaces with 95,000 each.
func benchPolicyLimits(t *testing.T) {
	netns.RequireNFT(t)
	s := newSite(t, "lim", 1, func(c *nodeConfig) { c.Policies = true; c.Sandboxes = residents(100) })
	n := s.nodes[0]
	s.api.Put(town(1000, 20, 0)...)
	testenv.Must(settled(n.ns, 3*time.Second))(t)
	variants := []variant{
		{"20 policies", func() (sample, error) { return sample{"anon MB": n.anonMB(), "peak MB": n.peakMB()}, nil }},
		{"near the limit", func() (sample, error) {
			before, cpu := slab(), n.cpu()
			for i := range 3 {
				s.api.Put(blocks(fmt.Sprint("ns", i), pick(95, 10))...)
			}
			took, err := settled(n.ns, 10*time.Second)
			if err != nil {
				return nil, err
			}
			out := sample{"until written, s": took.Seconds(), "CPU s": (n.cpu() - cpu).Seconds(), "anon MB": n.anonMB(), "peak MB": n.peakMB(), "kernel MB, about": slab() - before}
			// What a small change costs now.
			cpu = n.cpu()
			d, err := untilWritten(n.ns, func() { s.api.Put(policy("ns5", "extra", "a1", "a5")) })
			if err == nil {
				_, err = settled(n.ns, 10*time.Second)
			}
			out["a change, ms"], out["its CPU ms"] = milliseconds(d), milliseconds(n.cpu()-cpu)
			return out, err
		}},
	}
	compare(t, "A node's policies at their limit (three namespaces with 95,000 addresses each)", 1, []column{
		{name: "anon MB"}, {name: "peak MB"}, {name: "kernel MB, about"}, {name: "until written, s", format: "%.2f"}, {name: "CPU s", format: "%.2f"},
		{name: "a change, ms"}, {name: "its CPU ms"},
	}, variants)
}

// blocks are policies that name a thousand addresses each.
func blocks(ns string, policies int) []runtime.Object {
	var out []runtime.Object
	for i := range policies {
		var from []networkingv1.NetworkPolicyPeer
		for j := range 1000 {
			k := 2 * (i*1000 + j) // every second address, so that none can be taken together
			from = append(from, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("10.%d.%d.%d/32", 128+k>>16, k>>8&255, k&255)}})
		}
		name := fmt.Sprint("blocks", i)
		out = append(out, &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID(ns + name)},
			Spec: networkingv1.NetworkPolicySpec{
				PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "a0"}},
				Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: from}},
			},
		})
	}
	return out
}

// slab is the kernel's own memory, in MB: of everything that the machine does.
func slab() float64 {
	return float64(proc.Field("/proc/meminfo", "Slab:")+proc.Field("/proc/meminfo", "VmallocUsed:")) / 1024
}
