// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func ranges(texts ...string) []loadbalancer.Range {
	out, err := loadbalancer.Parse(texts)
	if err != nil {
		panic(err)
	}
	return out
}

// flagged are the pools of a cluster that was given these addresses by flag.
func flagged(texts ...string) []Pool {
	pools, _ := Pools(ranges(texts...), nil, nil)
	return pools
}

func annotated(name, value string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		if s.Annotations == nil {
			s.Annotations = map[string]string{}
		}
		s.Annotations[name] = value
	}
}

func having(addresses ...string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		for _, a := range addresses {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a})
		}
	}
}

func selecting(app string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": app} }
}

func TestPlanGivesAddressesOfThePool(t *testing.T) {
	shared := annotated(ShareAnnotation, "x")
	for name, c := range map[string]struct {
		pool     []string
		services []*corev1.Service
		want     string // of the Service web
		reason   string
	}{
		"the first one":              {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{testService("web", 0)}, "10.0.0.200", ReasonServed},
		"the next one":               {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{testService("web", 1), testService("old", 0)}, "10.0.0.201", ReasonServed},
		"none is left":               {[]string{"10.0.0.200"}, []*corev1.Service{testService("web", 1), testService("old", 0)}, "", ReasonPoolUsedUp},
		"what it has":                {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{testService("web", 1, having("10.0.0.200")), testService("old", 0)}, "10.0.0.200", ReasonServed},
		"what it has is out":         {[]string{"10.0.0.200"}, []*corev1.Service{testService("web", 1, having("10.0.0.199"))}, "10.0.0.200", ReasonServed},
		"what an older one has":      {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{testService("web", 1, having("10.0.0.200")), testService("old", 0, having("10.0.0.200"))}, "10.0.0.201", ReasonServed},
		"a node has one":             {[]string{"10.0.0.1-10.0.0.3"}, []*corev1.Service{testService("web", 0)}, "10.0.0.3", ReasonServed},
		"an owner has one":           {[]string{"10.0.0.250-10.0.0.251"}, []*corev1.Service{testService("web", 0)}, "10.0.0.251", ReasonServed},
		"others name one":            {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{testService("web", 1), externalService("ext", 0, "10.0.0.200")}, "10.0.0.201", ReasonServed},
		"others name all":            {[]string{"10.0.0.200"}, []*corev1.Service{testService("web", 1), externalService("ext", 0, "10.0.0.200")}, "10.0.0.200", ReasonServed},
		"others name what it has":    {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{testService("web", 1, having("10.0.0.200")), externalService("ext", 0, "10.0.0.200")}, "10.0.0.200", ReasonServed},
		"others name what it asks":   {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{testService("web", 1, loadBalancerIP("10.0.0.200")), externalService("ext", 0, "10.0.0.200")}, "10.0.0.200", ReasonServed},
		"it asks":                    {[]string{"10.0.0.200/29"}, []*corev1.Service{testService("web", 0, loadBalancerIP("10.0.0.203"))}, "10.0.0.203", ReasonServed},
		"it asks by annotation":      {[]string{"10.0.0.200/29"}, []*corev1.Service{testService("web", 0, annotated(AddressesAnnotation, "10.0.0.204"))}, "10.0.0.204", ReasonServed},
		"it asks again":              {[]string{"10.0.0.200/29"}, []*corev1.Service{testService("web", 0, having("10.0.0.201"), loadBalancerIP("10.0.0.203"))}, "10.0.0.203", ReasonServed},
		"it asks for what is not in": {[]string{"10.0.0.200/29"}, []*corev1.Service{testService("web", 0, loadBalancerIP("10.0.0.100"))}, "", ReasonAddressNotFree},
		"it asks for another's":      {[]string{"10.0.0.200/29"}, []*corev1.Service{testService("web", 1, loadBalancerIP("10.0.0.201")), testService("old", 0)}, "", ReasonAddressNotFree},
		"both families":              {[]string{"10.0.0.200", "fd00::100-fd00::1ff"}, []*corev1.Service{testService("web", 0, families(v6, v4))}, "fd00::100 10.0.0.200", ReasonServed},
		"the family that there is":   {[]string{"10.0.0.200"}, []*corev1.Service{testService("web", 0, families(v6, v4))}, "10.0.0.200", ReasonServed},
		"nodes' without its family":  {[]string{"fd00::100"}, []*corev1.Service{testService("web", 0)}, "10.0.0.1 10.0.0.2", ReasonServed},
		"nodes' if it wants them":    {[]string{"10.0.0.200"}, []*corev1.Service{testService("web", 0, annotated(NodesAnnotation, "true"))}, "10.0.0.1 10.0.0.2", ReasonServed},
		"shared":                     {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{testService("web", 1, shared, onPorts("80/TCP")), testService("old", 0, shared)}, "10.0.0.200", ReasonServed},
		"shared, one port":           {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{testService("web", 1, shared), testService("old", 0, shared)}, "10.0.0.201", ReasonServed},
		"shared, local, other pods":  {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{testService("web", 1, shared, localOnly, onPorts("80/TCP")), testService("old", 0, shared, localOnly)}, "10.0.0.201", ReasonServed},
		"shared, local, same pods": {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{testService("web", 1, shared, localOnly, onPorts("80/TCP"), selecting("old")), testService("old", 0, shared, localOnly)},
			"10.0.0.200", ReasonServed},
		"ports of no other Service there": {[]string{"10.0.0.200"}, []*corev1.Service{testService("web", 0, onPorts("6443/TCP"))}, "10.0.0.200", ReasonServed},
	} {
		t.Run(name, func(t *testing.T) {
			s := &State{Services: c.services, Nodes: twoNodes(), Pools: flagged(c.pool...), Barred: []netip.Addr{netip.MustParseAddr("10.0.0.250")},
				Reserved: map[Port]string{loadbalancer.PortOf(corev1.ProtocolTCP, 6443): "the API server"}}
			v := Plan(s)[types.NamespacedName{Namespace: "default", Name: "web"}]
			if text(v.Addresses) != c.want || v.Reason != c.reason {
				t.Errorf("got %q, %s: %s; want %q, %s", text(v.Addresses), v.Reason, v.Message, c.want, c.reason)
			}
		})
	}
}

// TestPlansAreStableAndWithoutConflicts: whatever Services come and go, no Service has an address or a port that
// another has, none loses what it may keep, and the same state gives the same plan.
func TestPlansAreStableAndWithoutConflicts(t *testing.T) {
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	s := &State{Nodes: twoNodes(), Pools: flagged("10.0.0.200-10.0.0.205", "fd00::100-fd00::103")}
	for step := range 500 {
		if r.IntN(3) == 0 && len(s.Services) > 0 {
			i := r.IntN(len(s.Services))
			s.Services = slices.Delete(s.Services, i, i+1)
		} else {
			change := []func(*corev1.Service){families([][]corev1.IPFamily{{v4}, {v6}, {v4, v6}}[r.IntN(3)]...), onPorts(fmt.Sprintf("%d/TCP", 80+r.IntN(3)))}
			if r.IntN(2) == 0 {
				change = append(change, annotated(ShareAnnotation, "x"))
			}
			if r.IntN(4) == 0 {
				change = append(change, loadBalancerIP(fmt.Sprintf("10.0.0.%d", 199+r.IntN(8))))
			}
			if r.IntN(5) == 0 {
				change = append(change, annotated(NodesAnnotation, "true"))
			}
			s.Services = append(s.Services, testService(fmt.Sprint("s", step), step, change...))
		}
		plan := Plan(s)
		if fmt.Sprint(plan) != fmt.Sprint(Plan(s)) {
			t.Fatalf("step %d: the same state gives two plans", step)
		}
		at := map[string]string{}
		for _, svc := range s.Services {
			v := plan[key(svc)]
			for _, a := range v.Addresses {
				for _, p := range svc.Spec.Ports {
					where := fmt.Sprint(a, p.Port)
					if at[where] != "" {
						t.Fatalf("step %d: %s and %s have %s", step, at[where], svc.Name, where)
					}
					at[where] = svc.Name
				}
			}
			for _, before := range svc.Status.LoadBalancer.Ingress {
				if v.Pool && !slices.Contains(v.Addresses, netip.MustParseAddr(before.IP)) {
					t.Fatalf("step %d: %s had %s and has %v", step, svc.Name, before.IP, v.Addresses)
				}
			}
			status, _ := StatusOf(svc, v)
			svc.Status = *status
		}
	}
}

func TestHolderIsReplacedOnlyWhenUnresponsive(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.200"), netip.MustParseAddr("10.0.0.201")
	both := map[netip.Addr][]string{a: {"m", "n"}, b: {"m", "n"}}
	silent := map[string]bool{}
	alive := func(n string) bool { return !silent[n] }
	first := Assign(loadbalancer.Holders{}, 7, both, alive, said{})
	testenv.False(t, first[a].Node == first[b].Node || first[a].Term != 7, "not spread: %v", first)
	testenv.Equal(t, fmt.Sprint(Assign(first, 8, both, alive, said{})), fmt.Sprint(first), "without a reason %v became", first)
	silent[first[a].Node] = true
	moved := Assign(first, 8, both, alive, said{})
	testenv.False(t, moved[a].Node != first[b].Node || moved[a].Term != 8 || moved[b] != first[b], "%v became %v", first, moved)
	silent["m"], silent["n"] = true, true
	testenv.Equal(t, fmt.Sprint(Assign(moved, 9, both, alive, said{})), fmt.Sprint(moved), "all are silent, and %v became", moved)
	silent = map[string]bool{}
	if left := Assign(moved, 9, map[netip.Addr][]string{a: nil, b: {"m"}}, alive, said{}); left[a].Node != "" || left[b].Node != "m" {
		t.Errorf("without candidates: %v", left)
	}
	testenv.Equal(t, len(Assign(moved, 9, nil, alive, said{})), 0, "without addresses:")

	noHolder := Assign(loadbalancer.Holders{}, 7, map[netip.Addr][]string{a: nil}, alive, said{})
	if late := Assign(noHolder, 8, both, alive, said{}); !late[a].New {
		t.Errorf("when there is a node at last: %v, %v", noHolder, late)
	}
}

// TestNewHolderProbesUnprovenAddress: the network is asked by the node that takes an address that none has proven yet,
// and where another machine uses it.
func TestNewHolderProbesUnprovenAddress(t *testing.T) {
	a := netip.MustParseAddr("10.0.0.200")
	both, dead := map[netip.Addr][]string{a: {"m", "n"}}, ""
	alive := func(n string) bool { return n != dead }
	used := map[netip.Addr]string{a: "02:00:00:00:00:01"}
	first := Assign(loadbalancer.Holders{}, 7, both, alive, said{})
	testenv.True(t, first[a].New, "no machine has answered for it: %v", first)
	stays := Assign(first, 8, both, alive, said{proven: loadbalancer.Proven{a: 6}})
	testenv.True(t, stays[a] == first[a], "what was proven is another holding: %v", stays)
	proven := Assign(first, 8, both, alive, said{proven: loadbalancer.Proven{a: 7}})
	testenv.False(t, !proven[a].Same(first[a]) || proven[a].New, "%v was proven, and is %v", first, proven)
	dead = first[a].Node
	if moved := Assign(first, 9, both, alive, said{}); moved[a].Node == dead || !moved[a].New {
		t.Errorf("the first one died before it had proven it: %v", moved)
	}
	if moved := Assign(first, 9, both, alive, said{proven: loadbalancer.Proven{a: 7}}); moved[a].New {
		t.Errorf("the first one died, and had proven it: %v", moved)
	}
	if moved := Assign(proven, 9, both, alive, said{}); moved[a].New {
		t.Errorf("it was proven: %v", moved)
	}
	taken := said{inUse: used, proven: loadbalancer.Proven{a: 7}}
	moved := Assign(proven, 9, both, alive, taken)
	if again := Assign(moved, 10, both, alive, taken); !moved[a].New || !again[a].New {
		t.Errorf("another machine uses it: %v, %v", moved, again)
	}
	if noHolder := Assign(first, 9, map[netip.Addr][]string{a: nil}, alive, said{}); noHolder[a].Node != "" || !noHolder[a].New {
		t.Errorf("there is no holder: %v", noHolder)
	}
}

func TestCandidatesAreOnTheNetworkAndHaveEndpoints(t *testing.T) {
	m, n, far := testNode("m", "10.0.0.1"), testNode("n", "10.0.0.2"), testNode("far", "10.1.0.2")
	for _, x := range []*corev1.Node{m, n} {
		x.Annotations = map[string]string{loadbalancer.NetworksAnnotation: "10.0.0.0/24,fd00::/64"}
	}
	far.Annotations = map[string]string{loadbalancer.NetworksAnnotation: "10.1.0.0/24"}
	s := &State{Nodes: []*corev1.Node{m, n, far}, Pools: flagged("10.0.0.200-10.0.0.201"), Services: []*corev1.Service{testService("web", 0), testService("here", 1, localOnly)}}
	s.Slices = append(s.Slices, slice("here", "n"))
	got := Candidates(s, Plan(s))
	if want := "map[10.0.0.200:[m n] 10.0.0.201:[n]]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

func TestAddressRangesAreParsed(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.5": "10.0.0.5-10.0.0.5", "10.0.0.5-10.0.0.9": "10.0.0.5-10.0.0.9", "10.0.0.5 - 10.0.0.9": "10.0.0.5-10.0.0.9", "10.0.0.8/30": "10.0.0.9-10.0.0.10",
		"10.0.0.8/31": "10.0.0.8-10.0.0.9", "fd00::/126": "fd00::-fd00::3", "10.0.0.9-10.0.0.5": "", "10.0.0.5-fd00::1": "", "x": "", "10.0.0.0/33": "",
	} {
		r, err := loadbalancer.ParseRange(in)
		if got := strings.TrimSpace(fmt.Sprintf("%s-%s", r.First, r.Last)); err == nil && got != want || (err != nil) != (want == "") {
			t.Errorf("%s: %s, %v; want %s", in, got, err, want)
		}
	}
}

// TestNodesSpeakForTheirOwnAddresses: what a node says of an address counts while it is the holder, and the Service's
// owner reads it.
func TestNodesSpeakForTheirOwnAddresses(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.200"), netip.MustParseAddr("10.0.0.201")
	m, n := testNode("m"), testNode("n")
	m.Annotations = map[string]string{loadbalancer.ConflictsAnnotation: "10.0.0.200=02:00:00:00:00:01,10.0.0.201=02:00:00:00:00:02,nonsense,=,10.0.0.202=x"}
	got := InUse([]*corev1.Node{m, n}, loadbalancer.Holders{a: {Node: "m", Term: 1}, b: {Node: "n", Term: 1}})
	testenv.False(t, len(got) != 1 || got[a] != "02:00:00:00:00:01", "in use are %v", got)
	m.Annotations[loadbalancer.ProvenAnnotation] = "10.0.0.200=1,10.0.0.201=2,10.0.0.202=x,=,"
	n.Annotations = map[string]string{loadbalancer.ProvenAnnotation: "10.0.0.201=1"}
	if got := Proven([]*corev1.Node{m, n}, loadbalancer.Holders{a: {Node: "m", Term: 1}, b: {Node: "n", Term: 2}}); len(got) != 1 || got[a] != 1 {
		t.Errorf("proven are %v", got)
	}
	v := Allocation{Ours: true, Pool: true, Addresses: []netip.Addr{a}, Reason: ReasonServed}
	if v.inUse(got); v.Reason != ReasonAddressInUse || !strings.Contains(v.Message, "02:00:00:00:00:01") {
		t.Errorf("its owner reads %s: %s", v.Reason, v.Message)
	}
}

// TestManyWaitForAnAddress: each address is looked at once, however many Services find that there is none.
func TestManyWaitForAnAddress(t *testing.T) {
	s := &State{Nodes: twoNodes(), Pools: flagged("10.8.0.0-10.8.255.255")}
	l := s.newLedger()
	for a := netip.MustParseAddr("10.8.0.0"); s.Pools[0].has(a); a = a.Next() {
		l.holders[a] = []*corev1.Service{nil}
	}
	for range 5000 {
		if a := l.next(v4, testService("web", 0), []*Pool{&s.Pools[0]}); a.IsValid() {
			t.Fatalf("there is %s", a)
		}
	}
	testenv.Equal(t, l.searches[rangeOf{&s.Pools[0], 0}].sweeps, 1<<16, "addresses were looked at:")
}
