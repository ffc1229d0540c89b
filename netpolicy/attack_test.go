// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// What somebody with rights in a namespace, or on a node, may try.

// crowd is a world with a namespace of 500 pods on another node, one pod of ours in it, and one in another namespace.
func crowd() *world {
	w := newWorld()
	w.Nodes[1].Spec.PodCIDRs = []string{"10.42.2.0/23", "fd00:42:0:2::/64"}
	w.namespace("mallory", nil)
	w.namespace("alice", nil)
	for i := range 500 {
		p := w.pod("mallory", fmt.Sprint("p", i), "n2", 1, map[string]string{"app": "a", "n": fmt.Sprint(i)})
		p.Status.PodIP = fmt.Sprintf("10.42.%d.%d", 2+i/250, 1+i%250)
		p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	w.pod("mallory", "own", "n1", 5, map[string]string{"app": "a"})
	w.pod("alice", "own", "n1", 6, nil)
	return w
}

// TestManyRulesShareSets: a thousand rules that select the same pods cost their addresses once.
func TestManyRulesShareSets(t *testing.T) {
	w := crowd()
	var rules []string
	for i := range 1000 {
		rules = append(rules, fmt.Sprintf(`{from: [{podSelector: {matchLabels: {app: a}}}], ports: [{port: %d}]}`, 1000+i))
	}
	w.policy(t, "mallory", "many", `{podSelector: {}, ingress: [`+strings.Join(rules, ",")+`]}`)
	r := Desired(w.State, DefaultLimits())
	elements := 0
	for _, s := range r.Ruleset.Sets {
		elements += len(s.Elems)
	}
	if len(r.OverBudget) > 0 || elements > 510 {
		t.Errorf("%d elements, over budget: %v", elements, r.OverBudget)
	}
}

// TestBudget: who asks for too much has his own restricted pods closed, and nobody else's.
func TestBudget(t *testing.T) {
	alice := `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`
	many := func(n int, f string) string {
		var rules []string
		for i := range n {
			rules = append(rules, fmt.Sprintf(f, i))
		}
		return `{podSelector: {}, ingress: [` + strings.Join(rules, ",") + `]}`
	}
	for _, c := range []struct{ name, spec, why string }{
		{"different selectors for nearly the same pods", many(1000, `{from: [{podSelector: {matchExpressions: [{key: n, operator: NotIn, values: ["%d"]}]}}]}`), "addresses and ports"},
		{"rules", many(30000, `{ports: [{port: %d}]}`), "rules"},
		{"selectors without pods", many(12000, `{from: [{podSelector: {matchLabels: {n: "x%d"}}}]}`), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := crowd()
			w.policy(t, "mallory", "many", c.spec)
			w.policy(t, "alice", "hers", alice)
			r := Desired(w.State, DefaultLimits())
			if why := r.OverBudget["mallory"]; why == "" || !strings.Contains(why, c.why) || len(r.OverBudget) != 1 {
				t.Errorf("over budget: %v", r.OverBudget)
			}
			for _, b := range w.Sandboxes {
				for _, ip := range b.IPs {
					if got := r.Ruleset.Pods[ingress][ip]; (got == closed) != (b.Namespace == "mallory") || got == "" {
						t.Errorf("%s has the chain %q", b.Namespace, got)
					}
				}
			}
			if _, ok := r.Ruleset.Chains[closed]; !ok || len(r.Ruleset.Chains) != 2 {
				t.Errorf("the chains are %v", slices.Collect(maps.Keys(r.Ruleset.Chains)))
			}
		})
	}
	t.Run("all together", func(t *testing.T) {
		w := crowd()
		w.policy(t, "mallory", "many", many(200, `{from: [{podSelector: {matchExpressions: [{key: n, operator: NotIn, values: ["%d"]}]}}]}`))
		w.policy(t, "alice", "hers", alice)
		limits := DefaultLimits()
		limits.Node = 50_000
		r := Desired(w.State, limits)
		if len(r.OverBudget) != 1 || r.OverBudget["mallory"] == "" {
			t.Errorf("the largest has to go first: %v", r.OverBudget)
		}
	})
}

// TestForeignAddresses: a pod's status says nothing that its node cannot have given it.
func TestForeignAddresses(t *testing.T) {
	w := newWorld()
	w.namespace("x", nil)
	w.pod("x", "server", "n1", 5, nil)
	friend := w.pod("x", "friend", "n2", 6, map[string]string{"app": "friend"})
	liar := w.pod("x", "liar", "n2", 7, map[string]string{"app": "friend"})
	ours := w.pod("x", "ours", "n1", 8, map[string]string{"app": "friend"})
	lost := w.pod("x", "lost", "n3", 9, map[string]string{"app": "friend"})
	w.policy(t, "x", "p", `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}`)
	claim := func(p *corev1.Pod, ips ...string) {
		p.Status.PodIPs = nil
		for _, ip := range ips {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
		}
		p.Status.PodIP = ips[0]
	}
	claim(liar, "10.42.1.77", "203.0.113.7", "10.42.2.7", "::ffff:203.0.113.9", "nonsense")
	claim(ours, "10.42.1.78")
	claim(lost, "10.42.3.9")
	r := Desired(w.State, DefaultLimits())
	var got []string
	for name, s := range r.Ruleset.Sets {
		if strings.HasPrefix(name, "p4-") {
			got = slices.Sorted(maps.Keys(s.Elems))
		}
	}
	want := []string{"10.42.1.8", "10.42.2.6", "10.42.2.7"}
	if !slices.Equal(got, want) {
		t.Errorf("believed %v, want %v (%s is true)", got, want, friend.Status.PodIP)
	}
}

// TestUnknownPodsAreClosed, but for where no policy could select them.
func TestUnknownPodsAreClosed(t *testing.T) {
	w := newWorld()
	w.namespace("x", nil)
	w.policy(t, "x", "p", `{podSelector: {matchLabels: {app: other}}, policyTypes: [Ingress]}`)
	ip := netip.MustParseAddr("10.42.1.5")
	for _, c := range []struct {
		name    string
		b       Sandbox
		unknown bool
	}{
		{"never heard of", Sandbox{ID: "s", Namespace: "x", Name: "p", UID: "u", IPs: []netip.Addr{ip}}, true},
		{"in a namespace without policies", Sandbox{ID: "s", Namespace: "y", Name: "p", UID: "u", IPs: []netip.Addr{ip}}, false},
	} {
		w.Sandboxes = []Sandbox{c.b}
		r := Desired(w.State, DefaultLimits())
		if r.Unknown["s"] != c.unknown || (r.Ruleset.Pods[egress][ip] == closed) != c.unknown {
			t.Errorf("%s: %v", c.name, r)
		}
	}
	// Its mirror in the API has another UID than a static pod; one whose record is of an earlier version has none.
	mirror := w.pod("x", "static", "n1", 6, nil)
	mirror.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "hash"}
	for uid, known := range map[string]bool{"hash": true, "": true, string(mirror.UID): true, "other": false} {
		w.Sandboxes = []Sandbox{{ID: "s", Namespace: "x", Name: "static", UID: uid, IPs: []netip.Addr{ip}}}
		if r := Desired(w.State, DefaultLimits()); r.Unknown["s"] == known {
			t.Errorf("uid %q: known must be %v", uid, known)
		}
	}
}
