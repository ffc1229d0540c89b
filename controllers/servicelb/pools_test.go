// SPDX-License-Identifier: Apache-2.0

package servicelb_test

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

	"github.com/coracle-k8s/coracle/controllers/servicelb"
	"github.com/coracle-k8s/coracle/controllers/servicelb/addresspool"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/test/services/lb"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// testPool is an AddressPool that was made so many seconds after the first one.
func testPool(name string, age int, addresses string, change ...func(*addresspool.Spec)) *addresspool.AddressPool {
	p := &addresspool.AddressPool{}
	p.Name = name
	p.CreationTimestamp = metav1.NewTime(lb.Service(name, age).CreationTimestamp.Time)
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
func poolsAs(pools []servicelb.Pool) string {
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
			pools, flaws := servicelb.Pools(lb.Ranges(strings.Fields(c.flag)...), c.objects, networks)
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
		pools, _ := servicelb.Pools(nil, objects, nil)
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
				if slices.ContainsFunc(lb.Ranges(o.Spec.Addresses...), func(q loadbalancer.Range) bool { return q.Has(a) }) {
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
	gold, old := withLabel("tier", "gold"), lb.Service("old", 0)
	in := func(namespace string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Namespace = namespace }
	}
	for name, c := range map[string]struct {
		web    *corev1.Service
		want   string
		reason string
		says   string
	}{
		"one that need not be asked for":   {web: lb.Service("web", 1), want: "10.0.0.201", reason: servicelb.ReasonServed},
		"that of its labels":               {web: lb.Service("web", 1, gold), want: "10.0.0.220", reason: servicelb.ReasonServed},
		"that of its namespace":            {web: lb.Service("web", 1, in("a")), want: "10.0.0.230", reason: servicelb.ReasonServed},
		"by its name":                      {web: lb.Service("web", 1, lb.Annotated(servicelb.PoolAnnotation, "public")), want: "10.0.0.210", reason: servicelb.ReasonServed},
		"by its name, as MetalLB has it":   {web: lb.Service("web", 1, lb.Annotated("metallb.universe.tf/address-pool", "public")), want: "10.0.0.210", reason: servicelb.ReasonServed},
		"by its name, both families":       {web: lb.Service("web", 1, lb.Annotated(servicelb.PoolAnnotation, "public"), lb.Families(lb.V4, lb.V6)), want: "10.0.0.210 fd00::210", reason: servicelb.ReasonServed},
		"a name of no pool":                {web: lb.Service("web", 1, lb.Annotated(servicelb.PoolAnnotation, "pubic")), reason: servicelb.ReasonNoPool, says: "asks for the pool pubic"},
		"the name of a pool for others":    {web: lb.Service("web", 1, lb.Annotated(servicelb.PoolAnnotation, "gold")), reason: servicelb.ReasonNoPool, says: "selectors"},
		"an address of a pool":             {web: lb.Service("web", 1, lb.LoadBalancerIP("10.0.0.210")), want: "10.0.0.210", reason: servicelb.ReasonServed},
		"an address of a pool for others":  {web: lb.Service("web", 1, lb.LoadBalancerIP("10.0.0.220")), reason: servicelb.ReasonAddressNotFree, says: "leave this Service out"},
		"an address of another pool":       {web: lb.Service("web", 1, lb.LoadBalancerIP("10.0.0.201"), lb.Annotated(servicelb.PoolAnnotation, "public")), reason: servicelb.ReasonAddressNotFree, says: "not in the pool public"},
		"an address of no pool":            {web: lb.Service("web", 1, lb.LoadBalancerIP("10.0.0.99")), reason: servicelb.ReasonAddressNotFree, says: "in no pool"},
		"an address, as MetalLB has it":    {web: lb.Service("web", 1, lb.Annotated("metallb.io/loadBalancerIPs", "10.0.0.210")), want: "10.0.0.210", reason: servicelb.ReasonServed},
		"it keeps one that it has":         {web: lb.Service("web", 1, lb.Having("10.0.0.210")), want: "10.0.0.210", reason: servicelb.ReasonServed},
		"not one of a pool for others":     {web: lb.Service("web", 1, lb.Having("10.0.0.220")), want: "10.0.0.201", reason: servicelb.ReasonServed},
		"not one of another pool":          {web: lb.Service("web", 1, lb.Having("10.0.0.201"), lb.Annotated(servicelb.PoolAnnotation, "public")), want: "10.0.0.210", reason: servicelb.ReasonServed},
		"not one that is in no pool":       {web: lb.Service("web", 1, lb.Having("10.0.0.99")), want: "10.0.0.201", reason: servicelb.ReasonServed},
		"the next pool when one is empty":  {web: lb.Service("web", 1, gold, lb.Families(lb.V4)), want: "10.0.0.201", reason: servicelb.ReasonServed},
		"the other family, where it is no": {web: lb.Service("web", 1, lb.Families(lb.V6)), want: "fd00::1 fd00::2", reason: servicelb.ReasonServed},
	} {
		t.Run(name, func(t *testing.T) {
			s := &servicelb.State{Services: []*corev1.Service{c.web, old}, Nodes: lb.TwoNodes(), Namespaces: map[string]labels.Set{"a": {"team": "a"}}}
			if strings.HasPrefix(name, "the next pool") {
				s.Services = append(s.Services, lb.Service("first", 0, gold))
			}
			s.Pools, _ = servicelb.Pools(nil, pools, nil)
			v := servicelb.Plan(s)[servicelb.Key(c.web)]
			if lb.Text(v.Addresses) != c.want || v.Reason != c.reason || !strings.Contains(v.Message, c.says) {
				t.Errorf("got %q, %s: %s; want %q, %s, %q", lb.Text(v.Addresses), v.Reason, v.Message, c.want, c.reason, c.says)
			}
		})
	}
}

func TestPoolStatusNamesCandidateNodes(t *testing.T) {
	m, n := lb.Node("m", "10.0.0.1"), lb.With(lb.Node("n", "10.0.0.2"), "rack", "2")
	for _, x := range []*corev1.Node{m, n} {
		x.Annotations = map[string]string{loadbalancer.NetworksAnnotation: "10.0.0.0/24"}
	}
	objects := []*addresspool.AddressPool{
		testPool("near", 0, "10.0.0.200-10.0.0.203"), testPool("far", 1, "10.9.0.1", manual),
		testPool("rack", 2, "10.0.0.210", manual, func(s *addresspool.Spec) { s.NodeSelector = selector("rack", "2") }),
		testPool("none", 3, "10.0.0.220", manual, func(s *addresspool.Spec) { s.NodeSelector = selector("rack", "3") }),
	}
	share := lb.Annotated(servicelb.ShareAnnotation, "x")
	s := &servicelb.State{Nodes: []*corev1.Node{m, n}, Services: []*corev1.Service{
		lb.Service("a", 0, share), lb.Service("b", 1, share, lb.OnPorts("80/TCP")), lb.Service("c", 2), lb.Service("d", 3, lb.Annotated(servicelb.PoolAnnotation, "rack")),
	}}
	var flaws map[string]servicelb.Flaw
	s.Pools, flaws = servicelb.Pools(nil, objects, nil)
	plan := servicelb.Plan(s)
	status := servicelb.PoolStatus(s, plan, objects, flaws)
	for name, want := range map[string]string{"near": "2 of 4: Ready", "far": "0 of 1: OutOfReach", "rack": "1 of 1: Ready", "none": "0 of 1: OutOfReach"} {
		st := status[name]
		testenv.Equal(t, fmt.Sprintf("%d of %d: %s", st.Used, st.Total, st.Conditions[0].Reason), want, "%s:", name)
	}
	if got, want := fmt.Sprint(servicelb.Candidates(s, plan)), "map[10.0.0.200:[m n] 10.0.0.201:[m n] 10.0.0.210:[n]]"; got != want {
		t.Errorf("candidates %s, want %s", got, want)
	}
	for i, o := range objects { // written down, it is the same again
		objects[i].Status = status[o.Name]
	}
	testenv.Equal(t, fmt.Sprint(servicelb.PoolStatus(s, plan, objects, flaws)), fmt.Sprint(status), "%v became", status)
}
