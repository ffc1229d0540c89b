// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/coracle-k8s/coracle/test/policymodel"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func cutNumbers(s string) (int32, int32) {
	a, b, ok := strings.Cut(s, "-")
	first, _ := strconv.Atoi(a)
	if !ok {
		return int32(first), int32(first)
	}
	last, _ := strconv.Atoi(b)
	return int32(first), int32(last)
}

func cutAddrs(s string) (netip.Addr, netip.Addr) {
	a, b, ok := strings.Cut(s, "-")
	if !ok {
		return netip.MustParseAddr(a), netip.MustParseAddr(a)
	}
	return netip.MustParseAddr(a), netip.MustParseAddr(b)
}

// world is a cluster as tests write one: pods of this node (n1) have a sandbox, those of n2 a status.
type world struct {
	State
	model policymodel.Model
}

func newWorld() *world {
	w := &world{State: State{Node: "n1"}, model: policymodel.Model{Namespaces: map[string]map[string]string{}, Pods: map[netip.Addr]*corev1.Pod{}}}
	for _, n := range []string{"n1", "n2"} {
		w.Nodes = append(w.Nodes, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: n}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.42." + n[1:] + ".0/24", "fd00:42:0:" + n[1:] + "::/64"}},
		})
	}
	return w
}

func (w *world) namespace(name string, its map[string]string) {
	its = maps.Clone(its)
	if its == nil {
		its = map[string]string{}
	}
	its[corev1.LabelMetadataName] = name
	w.Namespaces = append(w.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: its}})
	w.model.Namespaces[name] = its
}

// pod adds one with the addresses .number of both families in its node's networks.
func (w *world) pod(namespace, name, node string, number int, its map[string]string, ports ...corev1.ContainerPort) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID("uid-" + namespace + "-" + name), Labels: its},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Ports: ports}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	ips := []netip.Addr{
		netip.MustParseAddr(fmt.Sprintf("10.42.%s.%d", node[1:], number)), netip.MustParseAddr(fmt.Sprintf("fd00:42:0:%s::%x", node[1:], number)),
	}
	for _, ip := range ips {
		w.model.Pods[ip] = p
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip.String()})
	}
	p.Status.PodIP = ips[0].String()
	if node == w.Node {
		w.Sandboxes = append(w.Sandboxes, Sandbox{ID: namespace + name + "_eth0", Namespace: namespace, Name: name, UID: string(p.UID), IPs: ips})
	}
	w.Pods = append(w.Pods, p)
	return p
}

func (w *world) policy(t testing.TB, namespace, name, spec string) {
	t.Helper()
	p := testenv.Must(policymodel.Policy(namespace, name, spec))(t)
	w.add(p)
}

// add does what the API does: it fills policyTypes in.
func (w *world) add(p *networkingv1.NetworkPolicy) {
	policymodel.FillIn(p)
	w.Policies = append(w.Policies, p)
	w.model.Policies = w.Policies
}

func (w *world) here(ip netip.Addr) bool {
	return slices.ContainsFunc(w.Sandboxes, func(b Sandbox) bool { return slices.Contains(b.IPs, ip) })
}

var outside = []netip.Addr{netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("2001:db8::7")}

// connections are all that pods and outsiders of one family can open to one another.
func (w *world) connections(portNumbers []int32) []connection {
	ends := slices.Concat(slices.SortedFunc(maps.Keys(w.model.Pods), netip.Addr.Compare), outside)
	var out []connection
	for _, from := range slices.Concat(ends, proxySources) {
		for _, to := range ends {
			if from.Is4() != to.Is4() || !w.here(from) && !w.here(to) {
				continue
			}
			for _, proto := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP} {
				for _, port := range portNumbers {
					out = append(out, connection{from, to, proto, port})
				}
			}
		}
	}
	return out
}

// compare checks the rules against the model, connection by connection.
func (w *world) compare(t *testing.T) {
	t.Helper()
	r := Desired(w.State, DefaultLimits())
	testenv.False(t, len(r.OverBudget)+len(r.Unknown) > 0, "over budget: %v; unknown: %v", r.OverBudget, r.Unknown)
	wrong := 0
	for _, c := range w.connections([]int32{53, 80, 81, 443, 8080, 9000, 9500}) {
		want, got := w.allowed(c), r.Ruleset.allows(c)
		if got != want && wrong < 10 {
			wrong++
			t.Errorf("%v to %v %v %d: allowed %v, want %v", c.from, c.to, c.proto, c.port, got, want)
		}
	}
	if wrong > 0 {
		text, _ := yaml.Marshal(w.Policies)
		t.Logf("the policies are:\n%s\nand the table:\n%s", text, renderReplacement(r.Ruleset))
	}
}

func dozen() *world {
	w := newWorld()
	namespaces := policymodel.Namespaces()
	for _, name := range slices.Sorted(maps.Keys(namespaces)) {
		w.namespace(name, namespaces[name])
	}
	w.namespace("kube-system", nil)
	for i, p := range policymodel.Pods() {
		node := "n1"
		if i%4 == 3 {
			node = "n2"
		}
		w.pod(p.Namespace, p.Name, node, 11+i, p.Labels, p.Spec.Containers[0].Ports...)
	}
	return w
}

func TestDocumentedPoliciesAreEnforced(t *testing.T) {
	for _, c := range policymodel.Listed() {
		t.Run(c.Name, func(t *testing.T) {
			w := dozen()
			w.policy(t, c.Namespace, "p", c.Spec)
			w.compare(t)
		})
	}
	t.Run("all together", func(t *testing.T) {
		w := dozen()
		for i, c := range policymodel.Listed() {
			w.policy(t, []string{"x", "y", "z"}[i%3], "p"+strconv.Itoa(i), c.Spec)
		}
		w.compare(t)
	})
}

// TestRandomPoliciesMatchTheModel compares with the model what chance wrote.
func TestRandomPoliciesMatchTheModel(t *testing.T) {
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range 150 {
		w := dozen()
		w.shake(r)
		for p := range 1 + r.IntN(6) {
			w.add(generate(r, fmt.Sprint("p", p)))
		}
		w.compare(t)
		testenv.Require(t, !t.Failed(), "case %d of seed %d", i, seed)
	}
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// generate writes a policy for the dozen by chance.
func generate(r *rand.Rand, name string) *networkingv1.NetworkPolicy {
	addresses := func(texts ...string) (out []netip.Addr) {
		for _, text := range texts {
			out = append(out, netip.MustParseAddr(text))
		}
		return out
	}
	return policymodel.Generator{
		Rand: r, Wrapped: true,
		Networks: addresses("10.42.1.0", "10.42.1.12", "10.42.2.0", "203.0.113.7", "0.0.0.0", "255.255.255.255", "fd00:42:0:1::", "fd00:42:0:1::d", "fd00:42:0:2::e", "2001:db8::7", "::"),
		Near:     addresses("10.42.1.12", "10.42.2.14", "203.0.113.7", "fd00:42:0:1::d", "2001:db8::7"),
	}.Policy(name)
}

// shake has the world's pods in all states that there are: with other labels and ports, ended, without an address, in
// the host's network, and with an address that another one had, or says it has.
func (w *world) shake(r *rand.Rand) {
	for i := range w.Namespaces {
		if r.IntN(4) == 0 {
			w.Namespaces[i].Labels["team"] = pick(r, "x", "y", "z")
		}
	}
	now := metav1.Now()
	for i, p := range slices.Clone(w.Pods) {
		if r.IntN(3) == 0 {
			p.Labels = pick(r, nil, map[string]string{"app": pick(r, "a", "b", "c")}, map[string]string{"tier": "", "app": "a"})
		}
		if r.IntN(3) == 0 {
			sidecar := corev1.Container{Ports: []corev1.ContainerPort{{Name: pick(r, "web", "names"), ContainerPort: pick[int32](r, 81, 443, 9000), Protocol: pick(r, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)}}}
			p.Spec.Containers = append(p.Spec.Containers, sidecar)
		}
		if p.Spec.NodeName == w.Node {
			if r.IntN(4) == 0 { // what a status says of this node's own pods is not asked for
				p.Status.PodIP, p.Status.PodIPs = "10.42.1.99", nil
			}
			continue
		}
		leave := func() {
			for _, ip := range p.Status.PodIPs {
				delete(w.model.Pods, netip.MustParseAddr(ip.IP))
			}
		}
		switch r.IntN(8) {
		case 0:
			leave()
			p.Status.Phase = pick(r, corev1.PodSucceeded, corev1.PodFailed)
		case 1:
			leave()
			p.Status = corev1.PodStatus{Phase: corev1.PodPending}
		case 2:
			leave()
			p.Spec.HostNetwork, p.Status.PodIP, p.Status.PodIPs = true, "203.0.113.7", []corev1.PodIP{{IP: "203.0.113.7"}}
		case 3, 4: // its address is another one's already
			last := netip.MustParseAddr(p.Status.PodIP).As4()[3]
			p.DeletionTimestamp = &now
			w.pod(pick(r, "x", "y", "z"), fmt.Sprint("heir", i), "n2", int(last), map[string]string{"app": pick(r, "a", "b", "c")})
		case 5:
			liar := w.pod(pick(r, "x", "y", "z"), fmt.Sprint("liar", i), "n2", 100+i, map[string]string{"app": pick(r, "a", "b", "c")})
			for _, ip := range liar.Status.PodIPs {
				delete(w.model.Pods, netip.MustParseAddr(ip.IP))
			}
			liar.Status = p.Status
			leave()
		}
	}
}
