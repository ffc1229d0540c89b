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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// What a user with rights in a namespace, or on a node, may try.

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
	testenv.False(t, len(r.OverBudget) > 0 || elements > 510, "%d elements, over budget: %v", elements, r.OverBudget)
}

// TestCostlyPoliciesCloseOnlyTheirNamespace: a namespace that asks for too much of the kernel, or for comparisons that
// leave little there, has its own restricted pods closed, and no other's.
func TestCostlyPoliciesCloseOnlyTheirNamespace(t *testing.T) {
	const alice, comparisons = `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`, "comparisons"
	rules := func(n int, f func(i int) string) string {
		out := make([]string, n)
		for i := range out {
			out[i] = f(i)
		}
		return strings.Join(out, ",")
	}
	many := func(n int, f string) string {
		return `{podSelector: {}, ingress: [` + rules(n, func(i int) string { return fmt.Sprintf(f, i) }) + `]}`
	}
	for _, c := range []struct{ name, spec, why string }{
		{"different selectors for nearly the same pods", many(1000, `{from: [{podSelector: {matchExpressions: [{key: n, operator: NotIn, values: ["%d"]}]}}]}`), "addresses and ports"},
		{"rules", many(30000, `{ports: [{port: %d}]}`), "rules"},
		{"exceptions", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [` + exceptions(60_000) + `]}}]}]}`, "addresses and ports"},
		{"selectors without pods", many(12000, `{from: [{podSelector: {matchLabels: {n: "x%d"}}}]}`), ""},
		{"blocks for a named port", `{podSelector: {}, policyTypes: [Egress], egress: [` + rules(30, func(int) string {
			return `{to: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: web}]}`
		}) + `]}`, comparisons},
		{"values of a peer's selector", `{podSelector: {}, ingress: [` + rules(10, func(i int) string {
			return fmt.Sprintf(`{from: [{podSelector: {matchExpressions: [{key: n, operator: In, values: [%s, x%d]}]}}]}`, values(5), i)
		}) + `]}`, comparisons},
		{"values of the policy's own selector", `{podSelector: {matchExpressions: [{key: n, operator: NotIn, values: [` +
			values(2_000) + `]}]}}`, comparisons},
		{"exceptions that are compared", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [` +
			exceptions(2_000) + `]}}]}]}`, comparisons},
		{"ports", `{podSelector: {}, ingress: [{ports: [` + rules(20_000, func(int) string { return `{port: 80}` }) + `]}]}`, comparisons},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := crowd()
			w.policy(t, "mallory", "many", c.spec)
			w.policy(t, "alice", "hers", alice)
			limits := DefaultLimits()
			if c.why == comparisons {
				if r := Desired(w.State, limits); len(r.OverBudget) > 0 {
					t.Errorf("this is not much: %v", r.OverBudget)
				}
				limits.Work = 10_000
			}
			r := Desired(w.State, limits)
			if why := r.OverBudget["mallory"]; why == "" || !strings.Contains(why, c.why) || len(r.OverBudget) != 1 {
				t.Errorf("over budget: %v", r.OverBudget)
			}
			for _, b := range w.Sandboxes {
				d := ingress
				if strings.Contains(c.spec, "Egress") && b.Namespace == "mallory" {
					d = egress
				}
				for _, ip := range b.IPs {
					if got := r.Ruleset.Pods[d][ip]; (got == closedChain) != (b.Namespace == "mallory") || got == "" {
						t.Errorf("%s has the chain %q", b.Namespace, got)
					}
				}
			}
			if _, ok := r.Ruleset.Chains[closedChain]; !ok || len(r.Ruleset.Chains) != 2 {
				t.Errorf("the chains are %v", slices.Collect(maps.Keys(r.Ruleset.Chains)))
			}
		})
	}
	t.Run("all together", func(t *testing.T) {
		w := crowd()
		w.policy(t, "mallory", "many", many(80, `{from: [{podSelector: {matchExpressions: [{key: n, operator: NotIn, values: ["%d"]}]}}]}`))
		w.policy(t, "alice", "hers", alice)
		limits := DefaultLimits()
		if r := Desired(w.State, limits); len(r.OverBudget) > 0 {
			t.Errorf("alone this is within the limits: %v", r.OverBudget)
		}
		limits.Node = 30_000
		r := Desired(w.State, limits)
		testenv.True(t, len(r.OverBudget) == 1 && strings.Contains(r.OverBudget["mallory"], "all namespaces"),
			"the largest has to go first: %v", r.OverBudget)
	})
}

func exceptions(n int) string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("10.%d.%d.%d/32", i>>15, i>>7&255, i<<1&255)
	}
	return strings.Join(out, ",")
}

func values(n int) string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint("v", i)
	}
	return strings.Join(out, ",")
}

// TestOnlyConfirmedAddressesAreTrusted: a policy admits pods with the label app=friend, and each case has some that
// say of an address that it is theirs. Want are those that are admitted.
func TestOnlyConfirmedAddressesAreTrusted(t *testing.T) {
	friend, now := map[string]string{"app": "friend"}, metav1.Now()
	claims := func(p *corev1.Pod, ips ...string) {
		p.Status.PodIP, p.Status.PodIPs = ips[0], nil
		for _, ip := range ips {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
		}
	}
	for _, c := range []struct {
		name  string
		claim func(w *world)
		want  []string
	}{
		{"a pod's status says what its node cannot have given it", func(w *world) {
			w.pod("x", "true", "n2", 6, friend)
			claims(w.pod("x", "liar", "n2", 7, friend), "10.42.1.77", "203.0.113.7", "10.42.2.7", "::ffff:203.0.113.9", "nonsense")
			claims(w.pod("x", "ours", "n1", 8, friend), "10.42.1.78")
			claims(w.pod("x", "lost", "n3", 9, friend), "10.42.3.9")
		}, []string{"10.42.1.8", "10.42.2.6", "10.42.2.7"}},
		{"several pods have an address: it is that of the one that stays, and else none's", func(w *world) {
			going := func(p *corev1.Pod) { p.DeletionTimestamp = &now }
			going(w.pod("x", "goes", "n2", 10, friend)) // alone
			going(w.pod("x", "was", "n2", 11, friend))
			w.pod("x", "has-it-now", "n2", 11, nil)
			w.pod("x", "one", "n2", 12, friend)
			w.pod("x", "two", "n2", 12, nil)
			going(w.pod("x", "was-foreign", "n2", 13, nil))
			w.pod("x", "friend", "n2", 13, friend)
			w.pod("x", "ended", "n2", 14, friend).Status.Phase = corev1.PodFailed
			w.pod("x", "after", "n2", 14, friend)
			w.pod("x", "nowhere", "n2", 15, friend).Status = corev1.PodStatus{}
		}, []string{"10.42.2.10", "10.42.2.13", "10.42.2.14"}},
		{"a Node says that it has another one's network, or all of them: the rest is its", func(w *world) {
			node := func(name string, age int, cidrs ...string) {
				n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.Unix(int64(1000-age), 0)}, Spec: corev1.NodeSpec{PodCIDRs: cidrs}}
				w.Nodes = append([]*corev1.Node{n}, w.Nodes...)
			}
			w.Nodes[0].CreationTimestamp, w.Nodes[1].CreationTimestamp = metav1.Unix(1000, 0), metav1.Unix(900, 0) // n2 is older than this node
			node("n3", 10, "0.0.0.0/0", "::/0")
			node("n4", 11, "10.42.1.0/28", "10.42.4.0/24")
			node("n5", 200, "10.42.1.0/28", "10.42.2.128/25", "10.42.5.0/24") // older than both
			for i, c := range []struct{ node, ip string }{
				{"n3", "10.42.2.9"}, {"n3", "203.0.113.7"}, {"n4", "10.42.1.9"}, {"n4", "10.42.4.9"}, {"n5", "10.42.1.8"}, {"n5", "10.42.2.200"}, {"n5", "10.42.5.9"}, {"n2", "10.42.2.8"},
			} {
				p := w.pod("x", fmt.Sprint("p", i), "n2", 1, friend)
				p.Spec.NodeName = c.node
				claims(p, c.ip)
			}
		}, []string{"10.42.2.200", "10.42.4.9", "10.42.5.9"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			w.namespace("x", nil)
			w.pod("x", "server", "n1", 5, nil)
			w.policy(t, "x", "p", `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}`)
			c.claim(w)
			testenv.EqualSlices(t, w.admitted(t), c.want, "admitted are")
		})
	}
}

// admitted are the IPv4 addresses of the one set of pods that there is.
func (w *world) admitted(t *testing.T) (out []string) {
	t.Helper()
	r, sets := Desired(w.State, DefaultLimits()), 0
	for name, s := range r.Ruleset.Sets {
		if strings.HasPrefix(name, "p4-") {
			sets++
			out = slices.Sorted(maps.Keys(s.Elems))
		}
	}
	testenv.Require(t, sets == 1, "%d sets", sets)
	return out
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
		testenv.False(t, r.Unknown["s"] != c.unknown || (r.Ruleset.Pods[egress][ip] == closedChain) != c.unknown, "%s: %v", c.name, r)
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
