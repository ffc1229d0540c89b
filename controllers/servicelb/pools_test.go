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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/coracle-k8s/coracle/controllers/servicelb/addresspool"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// testPool is an AddressPool that was made so many seconds after the first one.
func testPool(name string, age int, addresses string, change ...func(*addresspool.Spec)) *addresspool.AddressPool {
	p := &addresspool.AddressPool{}
	p.Name = name
	p.CreationTimestamp = metav1.NewTime(testService(name, age).CreationTimestamp.Time)
	p.Spec.Addresses = strings.Fields(addresses)
	for _, c := range change {
		c(&p.Spec)
	}
	return p
}

func manual(s *addresspool.Spec) {
	no := false
	s.AutoAssign = &no
}

func selector(label, value string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{label: value}}
}

func forServices(label, value string) func(*addresspool.Spec) {
	return func(s *addresspool.Spec) { s.ServiceSelector = selector(label, value) }
}

func forNamespaces(label, value string) func(*addresspool.Spec) {
	return func(s *addresspool.Spec) { s.NamespaceSelector = selector(label, value) }
}

func withLabel(label, value string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Labels = map[string]string{label: value} }
}

// poolsAs writes pools as a text.
func poolsAs(pools []Pool) string {
	var out []string
	for _, p := range pools {
		text := p.Name + ":"
		for _, r := range p.Ranges {
			text += " " + r.String()
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

func TestPoolsThatOverlapOrAreInvalidAreRefused(t *testing.T) {
	networks := []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}
	for name, c := range map[string]struct {
		flag    string
		objects []*addresspool.AddressPool
		want    string
		flaws   string // names and reasons
		says    string // in one of the messages
	}{
		"nothing":        {},
		"the flag alone": {flag: "10.0.0.200 fd00::/126", want: "default: 10.0.0.200 fd00::-fd00::3"},
		"one named like the flag's takes its place": {flag: "10.0.0.200", objects: []*addresspool.AddressPool{testPool("default", 0, "10.0.0.1")}, want: "default: 10.0.0.1"},
		"those with a selector first":               {flag: "10.0.0.200", objects: []*addresspool.AddressPool{testPool("a", 0, "10.0.0.1"), testPool("z", 1, "10.0.0.2", forServices("x", "y"))}, want: "z: 10.0.0.2; a: 10.0.0.1; default: 10.0.0.200"},
		"the older one keeps what both have": {objects: []*addresspool.AddressPool{testPool("a", 1, "10.0.0.0-10.0.0.9"), testPool("b", 0, "10.0.0.4-10.0.0.5")},
			want: "a: 10.0.0.0-10.0.0.3 10.0.0.6-10.0.0.9; b: 10.0.0.4-10.0.0.5", flaws: "a Overlap", says: "the pool b has some of these"},
		"the flag keeps what both have": {flag: "10.0.0.4-10.0.0.9", objects: []*addresspool.AddressPool{testPool("a", 1, "10.0.0.5")}, want: "a:; default: 10.0.0.4-10.0.0.9", flaws: "a Overlap"},
		"twice in one":                  {objects: []*addresspool.AddressPool{testPool("a", 1, "10.0.0.4-10.0.0.6 10.0.0.6-10.0.0.7")}, want: "a: 10.0.0.4-10.0.0.6 10.0.0.7"},
		"a slip of the pen":             {objects: []*addresspool.AddressPool{testPool("a", 1, "10.0.0.9-10.0.0.3 10.0.0.4")}, want: "a: 10.0.0.4", flaws: "a BadAddresses", says: `"10.0.0.9-10.0.0.3" is no range`},
		"pods' addresses":               {objects: []*addresspool.AddressPool{testPool("a", 1, "10.42.9.0/24")}, want: "a:", flaws: "a BadAddresses", says: "10.42.0.0/16, the cluster's own network"},
		"addresses of no machine":       {objects: []*addresspool.AddressPool{testPool("a", 1, "127.0.0.1 224.0.0.1 fe80::1 ::ffff:10.0.0.1")}, want: "a:", flaws: "a BadAddresses", says: "127.0.0.1 is no address"},
		"a selector that is none":       {objects: []*addresspool.AddressPool{testPool("a", 1, "10.0.0.1", forServices("x", "not a value"))}, want: "a: 10.0.0.1", flaws: "a BadSelector", says: "serviceSelector"},
	} {
		t.Run(name, func(t *testing.T) {
			pools, flaws := Pools(ranges(strings.Fields(c.flag)...), c.objects, networks)
			testenv.Equal(t, poolsAs(pools), c.want, "")
			var got []string
			for name, f := range flaws {
				got = append(got, name+" "+f.Reason)
				testenv.Contains(t, f.Message, c.says, "%s says", name)
			}
			testenv.True(t, strings.Join(got, ", ") == c.flaws, "flaws %v, want %s", got, c.flaws)
		})
	}
}

// TestNoAddressIsInTwoPools: whatever is written into objects, no address is in two pools, and each is in one if it is
// in any object.
func TestNoAddressIsInTwoPools(t *testing.T) {
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		var objects []*addresspool.AddressPool
		for i := range 1 + r.IntN(4) {
			var addresses []string
			for range 1 + r.IntN(3) {
				first := r.IntN(30)
				addresses = append(addresses, fmt.Sprintf("10.0.0.%d-10.0.0.%d", 1+first, 1+first+r.IntN(10)))
			}
			objects = append(objects, testPool(fmt.Sprint("p", i), r.IntN(3), strings.Join(addresses, " ")))
		}
		pools, _ := Pools(nil, objects, nil)
		for a := netip.MustParseAddr("10.0.0.1"); a != netip.MustParseAddr("10.0.0.50"); a = a.Next() {
			in := 0
			for _, p := range pools {
				for _, q := range p.Ranges {
					if q.Has(a) {
						in++
					}
				}
			}
			want := 0
			for _, o := range objects {
				if slices.ContainsFunc(ranges(o.Spec.Addresses...), func(q loadbalancer.Range) bool { return q.Has(a) }) {
					want = 1
				}
			}
			if in != want {
				t.Fatalf("%s is %d times in %s", a, in, poolsAs(pools))
			}
		}
	}
}

// TestPlanWithSeveralPools: which pool a Service gets its address from.
func TestPlanWithSeveralPools(t *testing.T) {
	pools := []*addresspool.AddressPool{
		testPool("office", 0, "10.0.0.200-10.0.0.201"), testPool("public", 1, "10.0.0.210 fd00::210", manual),
		testPool("gold", 2, "10.0.0.220", forServices("tier", "gold")), testPool("team", 3, "10.0.0.230", forNamespaces("team", "a")),
	}
	gold, old := withLabel("tier", "gold"), testService("old", 0)
	in := func(namespace string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Namespace = namespace }
	}
	for name, c := range map[string]struct {
		web    *corev1.Service
		want   string
		reason string
		says   string
	}{
		"one that need not be asked for":   {web: testService("web", 1), want: "10.0.0.201", reason: ReasonServed},
		"that of its labels":               {web: testService("web", 1, gold), want: "10.0.0.220", reason: ReasonServed},
		"that of its namespace":            {web: testService("web", 1, in("a")), want: "10.0.0.230", reason: ReasonServed},
		"by its name":                      {web: testService("web", 1, annotated(PoolAnnotation, "public")), want: "10.0.0.210", reason: ReasonServed},
		"by its name, as MetalLB has it":   {web: testService("web", 1, annotated("metallb.universe.tf/address-pool", "public")), want: "10.0.0.210", reason: ReasonServed},
		"by its name, both families":       {web: testService("web", 1, annotated(PoolAnnotation, "public"), families(v4, v6)), want: "10.0.0.210 fd00::210", reason: ReasonServed},
		"a name of no pool":                {web: testService("web", 1, annotated(PoolAnnotation, "pubic")), reason: ReasonNoPool, says: "asks for the pool pubic"},
		"the name of a pool for others":    {web: testService("web", 1, annotated(PoolAnnotation, "gold")), reason: ReasonNoPool, says: "selectors"},
		"an address of a pool":             {web: testService("web", 1, loadBalancerIP("10.0.0.210")), want: "10.0.0.210", reason: ReasonServed},
		"an address of a pool for others":  {web: testService("web", 1, loadBalancerIP("10.0.0.220")), reason: ReasonAddressNotFree, says: "leave this Service out"},
		"an address of another pool":       {web: testService("web", 1, loadBalancerIP("10.0.0.201"), annotated(PoolAnnotation, "public")), reason: ReasonAddressNotFree, says: "not in the pool public"},
		"an address of no pool":            {web: testService("web", 1, loadBalancerIP("10.0.0.99")), reason: ReasonAddressNotFree, says: "in no pool"},
		"an address, as MetalLB has it":    {web: testService("web", 1, annotated("metallb.io/loadBalancerIPs", "10.0.0.210")), want: "10.0.0.210", reason: ReasonServed},
		"it keeps one that it has":         {web: testService("web", 1, having("10.0.0.210")), want: "10.0.0.210", reason: ReasonServed},
		"not one of a pool for others":     {web: testService("web", 1, having("10.0.0.220")), want: "10.0.0.201", reason: ReasonServed},
		"not one of another pool":          {web: testService("web", 1, having("10.0.0.201"), annotated(PoolAnnotation, "public")), want: "10.0.0.210", reason: ReasonServed},
		"not one that is in no pool":       {web: testService("web", 1, having("10.0.0.99")), want: "10.0.0.201", reason: ReasonServed},
		"the next pool when one is empty":  {web: testService("web", 1, gold, families(v4)), want: "10.0.0.201", reason: ReasonServed},
		"the other family, where it is no": {web: testService("web", 1, families(v6)), want: "fd00::1 fd00::2", reason: ReasonServed},
	} {
		t.Run(name, func(t *testing.T) {
			s := &State{Services: []*corev1.Service{c.web, old}, Nodes: twoNodes(), Namespaces: map[string]labels.Set{"a": {"team": "a"}}}
			if strings.HasPrefix(name, "the next pool") {
				s.Services = append(s.Services, testService("first", 0, gold))
			}
			s.Pools, _ = Pools(nil, pools, nil)
			v := Plan(s)[key(c.web)]
			if text(v.Addresses) != c.want || v.Reason != c.reason || !strings.Contains(v.Message, c.says) {
				t.Errorf("got %q, %s: %s; want %q, %s, %q", text(v.Addresses), v.Reason, v.Message, c.want, c.reason, c.says)
			}
		})
	}
}

func TestPoolSizeCountsUsableAddresses(t *testing.T) {
	for text, want := range map[string][2]int{ // without avoidBuggyIPs, and with it
		"10.0.0.200": {1, 1}, "10.0.0.254-10.0.1.1": {4, 2}, "10.0.0.0-10.0.0.0": {1, 0}, "10.0.0.0-10.0.1.255": {512, 508}, "10.0.0.255": {1, 0},
		"fd00::/120": {256, 256}, "fd00::/64": {maxRange, maxRange}, "10.0.0.5 fd00::ff-fd00::100": {3, 3},
	} {
		p := &Pool{Ranges: ranges(strings.Fields(text)...)}
		plain := p.size()
		p.AvoidBuggy = true
		testenv.Equal(t, [2]int{plain, p.size()}, want, "%s:", text)
		if a := netip.MustParseAddr("10.0.0.255"); p.has(a) {
			t.Errorf("%s has %s", text, a)
		}
	}
}

func TestPoolStatusNamesCandidateNodes(t *testing.T) {
	m, n := testNode("m", "10.0.0.1"), with(testNode("n", "10.0.0.2"), "rack", "2")
	for _, x := range []*corev1.Node{m, n} {
		x.Annotations = map[string]string{loadbalancer.NetworksAnnotation: "10.0.0.0/24"}
	}
	objects := []*addresspool.AddressPool{
		testPool("near", 0, "10.0.0.200-10.0.0.203"), testPool("far", 1, "10.9.0.1", manual),
		testPool("rack", 2, "10.0.0.210", manual, func(s *addresspool.Spec) { s.NodeSelector = selector("rack", "2") }),
		testPool("none", 3, "10.0.0.220", manual, func(s *addresspool.Spec) { s.NodeSelector = selector("rack", "3") }),
	}
	share := annotated(ShareAnnotation, "x")
	s := &State{Nodes: []*corev1.Node{m, n}, Services: []*corev1.Service{
		testService("a", 0, share), testService("b", 1, share, onPorts("80/TCP")), testService("c", 2), testService("d", 3, annotated(PoolAnnotation, "rack")),
	}}
	var flaws map[string]Flaw
	s.Pools, flaws = Pools(nil, objects, nil)
	plan := Plan(s)
	status := PoolStatus(s, plan, objects, flaws)
	for name, want := range map[string]string{"near": "2 of 4: Ready", "far": "0 of 1: OutOfReach", "rack": "1 of 1: Ready", "none": "0 of 1: OutOfReach"} {
		st := status[name]
		testenv.Equal(t, fmt.Sprintf("%d of %d: %s", st.Used, st.Total, st.Conditions[0].Reason), want, "%s:", name)
	}
	if got, want := fmt.Sprint(Candidates(s, plan)), "map[10.0.0.200:[m n] 10.0.0.201:[m n] 10.0.0.210:[n]]"; got != want {
		t.Errorf("candidates %s, want %s", got, want)
	}
	for i, o := range objects { // written down, it is the same again
		objects[i].Status = status[o.Name]
	}
	testenv.Equal(t, fmt.Sprint(PoolStatus(s, plan, objects, flaws)), fmt.Sprint(status), "%v became", status)
}

func TestAddressesOutsideAllPoolsAreFound(t *testing.T) {
	s := &State{Nodes: twoNodes(), Pools: flagged("10.0.0.200")}
	had := []netip.Addr{netip.MustParseAddr("10.0.0.200"), netip.MustParseAddr("10.0.0.201"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.9")}
	testenv.Equal(t, text(s.withoutPool(had, had[3:])), "10.0.0.201", "")
}
