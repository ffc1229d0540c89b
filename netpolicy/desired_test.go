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
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
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
	model model
}

func newWorld() *world {
	w := &world{State: State{Node: "n1"}, model: model{namespaces: map[string]map[string]string{}, pods: map[netip.Addr]*corev1.Pod{}}}
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
	w.model.namespaces[name] = its
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
		w.model.pods[ip] = p
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
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	w.add(p)
}

// add does what the API does: it fills policyTypes in.
func (w *world) add(p *networkingv1.NetworkPolicy) {
	if len(p.Spec.PolicyTypes) == 0 {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(p.Spec.Egress) > 0 {
			p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	w.Policies = append(w.Policies, p)
	w.model.policies = w.Policies
}

func (w *world) here(ip netip.Addr) bool {
	return slices.ContainsFunc(w.Sandboxes, func(b Sandbox) bool { return slices.Contains(b.IPs, ip) })
}

var outside = []netip.Addr{netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("2001:db8::7")}

// connections are all that pods and outsiders of one family can open to one another.
func (w *world) connections(portNumbers []int32) []connection {
	ends := slices.Concat(slices.Collect(maps.Keys(w.model.pods)), outside)
	var out []connection
	for _, from := range ends {
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
	if len(r.OverBudget)+len(r.Unknown) > 0 {
		t.Errorf("over budget: %v; unknown: %v", r.OverBudget, r.Unknown)
	}
	wrong := 0
	for _, c := range w.connections([]int32{53, 80, 81, 443, 8080, 9000, 9500}) {
		want, got := w.model.allowed(c, w.here), r.Ruleset.allows(c)
		if got != want && wrong < 10 {
			wrong++
			t.Errorf("%v to %v %v %d: allowed %v, want %v", c.from, c.to, c.proto, c.port, got, want)
		}
	}
	if wrong > 0 {
		text, _ := yaml.Marshal(w.Policies)
		t.Logf("the policies are:\n%s\nand the table:\n%s", text, whole(r.Ruleset))
	}
}

func dozen() *world {
	w := newWorld()
	w.namespace("x", map[string]string{"team": "x", "env": "test"})
	w.namespace("y", map[string]string{"team": "y", "env": "test"})
	w.namespace("z", map[string]string{"team": "z", "env": "live"})
	w.namespace("kube-system", nil)
	number := 10
	for _, ns := range []string{"x", "y", "z"} {
		for i, its := range []map[string]string{{"app": "a"}, {"app": "b", "tier": "front"}, {"app": "c", "tier": "back"}, nil} {
			node := "n1"
			if i == 3 {
				node = "n2"
			}
			web := int32(80)
			if i == 1 {
				web = 8080
			}
			number++
			w.pod(ns, fmt.Sprint("p", i), node, number, its,
				corev1.ContainerPort{Name: "web", ContainerPort: web, Protocol: corev1.ProtocolTCP},
				corev1.ContainerPort{Name: "names", ContainerPort: 53, Protocol: corev1.ProtocolUDP})
		}
	}
	return w
}

// listed are policies for the dozen; the real packets use them, too.
var listed = []struct{ name, namespace, spec string }{
	{"deny all ingress", "x", `{podSelector: {}, policyTypes: [Ingress]}`},
	{"deny all egress", "x", `{podSelector: {}, policyTypes: [Egress]}`},
	{"deny both", "x", `{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress, Egress]}`},
	{"allow all ingress", "x", `{podSelector: {}, ingress: [{}]}`},
	{"allow all egress", "x", `{podSelector: {}, egress: [{}], policyTypes: [Egress]}`},
	{"from the same namespace", "x", `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`},
	{"from an app", "x", `{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{podSelector: {matchLabels: {app: b}}}]}]}`},
	{"from every namespace", "x", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}`},
	{"from a namespace by its labels", "x", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: y}}}]}]}`},
	{"from a namespace by its name", "x", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}]}]}`},
	{"both selectors of one peer", "x", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: y}}, podSelector: {matchLabels: {app: a}}}]}]}`},
	{"two peers", "x", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: y}}}, {podSelector: {matchLabels: {app: a}}}]}]}`},
	{"expressions", "x", `{podSelector: {matchExpressions: [{key: app, operator: In, values: [a, c]}]}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: env, operator: NotIn, values: [live]}, {key: team, operator: Exists}]}, podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}}]}]}`},
	{"a port", "x", `{podSelector: {}, ingress: [{ports: [{port: 80}]}]}`},
	{"ports of two protocols", "x", `{podSelector: {}, ingress: [{ports: [{port: 80}, {port: 53, protocol: UDP}, {port: 81, protocol: SCTP}]}]}`},
	{"all ports of a protocol", "x", `{podSelector: {}, ingress: [{ports: [{protocol: UDP}]}]}`},
	{"a named port", "x", `{podSelector: {}, ingress: [{ports: [{port: web}]}]}`},
	{"a named port with the wrong protocol", "x", `{podSelector: {}, ingress: [{ports: [{port: web, protocol: UDP}]}]}`},
	{"a range of ports", "x", `{podSelector: {}, ingress: [{ports: [{port: 81, endPort: 9000}]}]}`},
	{"several ranges and ports", "x", `{podSelector: {}, ingress: [{ports: [{port: 443, endPort: 8080}, {port: 80}, {port: 8000, endPort: 9000}, {port: web}]}]}`},
	{"a block", "x", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.42.1.0/24}}, {ipBlock: {cidr: "fd00:42:0:1::/64"}}]}]}`},
	{"a block with exceptions", "x", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.42.1.12/31, 10.42.2.0/24]}}, {ipBlock: {cidr: "::/0", except: ["fd00:42:0:1::c/127"]}}]}]}`},
	{"a block and ports", "x", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.42.0.0/16}}], ports: [{port: 80}]}]}`},
	{"rules add up", "x", `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}}], ports: [{port: 80}]}, {from: [{podSelector: {matchLabels: {app: b}}}], ports: [{port: 81}]}]}`},
	{"egress to an app", "x", `{podSelector: {}, egress: [{to: [{podSelector: {matchLabels: {app: b}}}]}], policyTypes: [Egress]}`},
	{"egress to a namespace at a port", "x", `{podSelector: {}, egress: [{to: [{namespaceSelector: {matchLabels: {team: y}}}], ports: [{port: 80}]}], policyTypes: [Egress]}`},
	{"egress to a named port", "x", `{podSelector: {}, egress: [{to: [{namespaceSelector: {}}], ports: [{port: web}]}], policyTypes: [Egress]}`},
	{"egress to a named port of anybody", "x", `{podSelector: {}, egress: [{ports: [{port: web}, {port: 81}]}], policyTypes: [Egress]}`},
	{"egress to a named port and blocks", "x", `{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.42.0.0/16}}], ports: [{port: web}]}], policyTypes: [Egress]}`},
	{"egress to the outside", "x", `{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}, {ipBlock: {cidr: "2000::/3"}}]}], policyTypes: [Egress]}`},
	{"egress in ranges", "x", `{podSelector: {}, egress: [{ports: [{port: 1, endPort: 80, protocol: UDP}, {port: 81, endPort: 65535}]}], policyTypes: [Egress]}`},
	{"both directions", "x", `{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{podSelector: {}}]}], egress: [{to: [{namespaceSelector: {matchLabels: {team: z}}}]}], policyTypes: [Ingress, Egress]}`},
	{"egress rules, policyTypes left out", "x", `{podSelector: {}, egress: [{to: [{podSelector: {}}]}]}`},
	{"nobody is selected", "x", `{podSelector: {matchLabels: {app: nobody}}}`},
	{"nobody is a peer", "x", `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: nobody}}}]}]}`},
}

func TestListed(t *testing.T) {
	for _, c := range listed {
		t.Run(c.name, func(t *testing.T) {
			w := dozen()
			w.policy(t, c.namespace, "p", c.spec)
			w.compare(t)
		})
	}
	t.Run("all together", func(t *testing.T) {
		w := dozen()
		for i, c := range listed {
			w.policy(t, []string{"x", "y", "z"}[i%3], "p"+strconv.Itoa(i), c.spec)
		}
		w.compare(t)
	})
}

// TestGenerated compares with the model what chance wrote.
func TestGenerated(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range 150 {
		w := dozen()
		w.shake(r)
		for p := range 1 + r.IntN(6) {
			w.add(generate(r, fmt.Sprint("p", p)))
		}
		w.compare(t)
		if t.Failed() {
			t.Fatalf("case %d of seed %d", i, seed)
		}
	}
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func generate(r *rand.Rand, name string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: pick(r, "x", "y", "z"), Name: name}}
	p.Spec.PodSelector = generateSelector(r, "app", "a", "b", "c")
	for range r.IntN(3) {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: generatePeers(r), Ports: generatePorts(r)})
	}
	for range r.IntN(3) {
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: generatePeers(r), Ports: generatePorts(r)})
	}
	p.Spec.PolicyTypes = pick(r, nil, []networkingv1.PolicyType{"Ingress"}, []networkingv1.PolicyType{"Egress"}, []networkingv1.PolicyType{"Ingress", "Egress"})
	return p
}

func generateSelector(r *rand.Rand, key string, values ...string) metav1.LabelSelector {
	switch r.IntN(5) {
	case 0:
		return metav1.LabelSelector{}
	case 1, 2:
		return metav1.LabelSelector{MatchLabels: map[string]string{key: pick(r, values...)}}
	case 3:
		return metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{
			Key: key, Operator: pick(r, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn), Values: []string{pick(r, values...), pick(r, values...)},
		}}}
	}
	return metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{
		Key: pick(r, key, "tier"), Operator: pick(r, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist),
	}}}
}

func generatePeers(r *rand.Rand) []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for range r.IntN(4) {
		var p networkingv1.NetworkPolicyPeer
		pods, namespaces := generateSelector(r, "app", "a", "b", "c"), generateSelector(r, "team", "x", "y", "z")
		switch r.IntN(4) {
		case 0:
			p.PodSelector = &pods
		case 1:
			p.NamespaceSelector = &namespaces
		case 2:
			p.PodSelector, p.NamespaceSelector = &pods, &namespaces
		case 3:
			p.IPBlock = generateBlock(r)
		}
		out = append(out, p)
	}
	return out
}

// generateBlock has its exceptions inside, as the API wants it: beside and inside of one another, and in every way to write them.
func generateBlock(r *rand.Rand) *networkingv1.IPBlock {
	base := netip.MustParseAddr(pick(r, "10.42.1.0", "10.42.1.12", "10.42.2.0", "203.0.113.7", "0.0.0.0", "255.255.255.255", "fd00:42:0:1::", "fd00:42:0:1::d", "fd00:42:0:2::e", "2001:db8::7", "::"))
	cidr := netip.PrefixFrom(base, base.BitLen()-pick(r, 0, 1, 2, 3, 4, 5, 8, 16, base.BitLen()-8, base.BitLen())).Masked()
	out := &networkingv1.IPBlock{CIDR: spell(r, cidr)}
	for range r.IntN(4) {
		within := cidr.Addr().AsSlice()
		if near := netip.MustParseAddr(pick(r, "10.42.1.12", "10.42.2.14", "203.0.113.7", "fd00:42:0:1::d", "2001:db8::7")); cidr.Contains(near) && r.IntN(3) > 0 {
			within = near.AsSlice()
		} else {
			for bit := cidr.Bits(); bit < len(within)*8; bit++ {
				within[bit/8] |= byte(r.IntN(2)) << (7 - bit%8)
			}
		}
		if a, _ := netip.AddrFromSlice(within); cidr.Bits() < a.BitLen() {
			out.Except = append(out.Except, spell(r, netip.PrefixFrom(a, cidr.Bits()+1+r.IntN(a.BitLen()-cidr.Bits())).Masked()))
		}
	}
	return out
}

// spell writes an IPv4 network also as IPv6 wraps it, which the API took from everybody once.
func spell(r *rand.Rand, p netip.Prefix) string {
	if p.Addr().Is4() && p.Bits() > 0 && r.IntN(5) == 0 {
		return fmt.Sprintf("::ffff:%s/%d", p.Addr(), p.Bits()+96)
	}
	return p.String()
}

// shake has the world's pods in all states that there are: with other labels and ports, ended, without an address, in the host's network, and with an address
// that another one had, or says it has.
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
				delete(w.model.pods, netip.MustParseAddr(ip.IP))
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
				delete(w.model.pods, netip.MustParseAddr(ip.IP))
			}
			liar.Status = p.Status
			leave()
		}
	}
}

func generatePorts(r *rand.Rand) []networkingv1.NetworkPolicyPort {
	var out []networkingv1.NetworkPolicyPort
	for range r.IntN(3) {
		proto := pick(r, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
		p := networkingv1.NetworkPolicyPort{Protocol: &proto}
		switch r.IntN(5) {
		case 0:
		case 1:
			port := intstr.FromString(pick(r, "web", "names", "none"))
			p.Port = &port
		case 2:
			port, end := intstr.FromInt32(pick[int32](r, 80, 81, 8080)), pick[int32](r, 8080, 9000, 65535)
			p.Port, p.EndPort = &port, &end
		default:
			port := intstr.FromInt32(pick[int32](r, 53, 80, 81, 8080))
			p.Port = &port
		}
		if r.IntN(4) == 0 {
			p.Protocol = nil
		}
		out = append(out, p)
	}
	return out
}
