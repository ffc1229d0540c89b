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
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/controllers/servicelb"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/test/services/lb"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func selecting(app string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": app} }
}

func TestPlanGivesAddressesOfThePool(t *testing.T) {
	shared := lb.Annotated(servicelb.ShareAnnotation, "x")
	for name, c := range map[string]struct {
		pool     []string
		services []*corev1.Service
		want     string // of the Service web
		reason   string
	}{
		"the first one":              {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{lb.Service("web", 0)}, "10.0.0.200", servicelb.ReasonServed},
		"the next one":               {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{lb.Service("web", 1), lb.Service("old", 0)}, "10.0.0.201", servicelb.ReasonServed},
		"none is left":               {[]string{"10.0.0.200"}, []*corev1.Service{lb.Service("web", 1), lb.Service("old", 0)}, "", servicelb.ReasonPoolUsedUp},
		"what it has":                {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{lb.Service("web", 1, lb.Having("10.0.0.200")), lb.Service("old", 0)}, "10.0.0.200", servicelb.ReasonServed},
		"what it has is out":         {[]string{"10.0.0.200"}, []*corev1.Service{lb.Service("web", 1, lb.Having("10.0.0.199"))}, "10.0.0.200", servicelb.ReasonServed},
		"what an older one has":      {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{lb.Service("web", 1, lb.Having("10.0.0.200")), lb.Service("old", 0, lb.Having("10.0.0.200"))}, "10.0.0.201", servicelb.ReasonServed},
		"a node has one":             {[]string{"10.0.0.1-10.0.0.3"}, []*corev1.Service{lb.Service("web", 0)}, "10.0.0.3", servicelb.ReasonServed},
		"an owner has one":           {[]string{"10.0.0.250-10.0.0.251"}, []*corev1.Service{lb.Service("web", 0)}, "10.0.0.251", servicelb.ReasonServed},
		"others name one":            {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{lb.Service("web", 1), lb.ExternalService("ext", 0, "10.0.0.200")}, "10.0.0.201", servicelb.ReasonServed},
		"others name all":            {[]string{"10.0.0.200"}, []*corev1.Service{lb.Service("web", 1), lb.ExternalService("ext", 0, "10.0.0.200")}, "10.0.0.200", servicelb.ReasonServed},
		"others name what it has":    {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{lb.Service("web", 1, lb.Having("10.0.0.200")), lb.ExternalService("ext", 0, "10.0.0.200")}, "10.0.0.200", servicelb.ReasonServed},
		"others name what it asks":   {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{lb.Service("web", 1, lb.LoadBalancerIP("10.0.0.200")), lb.ExternalService("ext", 0, "10.0.0.200")}, "10.0.0.200", servicelb.ReasonServed},
		"it asks":                    {[]string{"10.0.0.200/29"}, []*corev1.Service{lb.Service("web", 0, lb.LoadBalancerIP("10.0.0.203"))}, "10.0.0.203", servicelb.ReasonServed},
		"it asks by annotation":      {[]string{"10.0.0.200/29"}, []*corev1.Service{lb.Service("web", 0, lb.Annotated(servicelb.AddressesAnnotation, "10.0.0.204"))}, "10.0.0.204", servicelb.ReasonServed},
		"it asks again":              {[]string{"10.0.0.200/29"}, []*corev1.Service{lb.Service("web", 0, lb.Having("10.0.0.201"), lb.LoadBalancerIP("10.0.0.203"))}, "10.0.0.203", servicelb.ReasonServed},
		"it asks for what is not in": {[]string{"10.0.0.200/29"}, []*corev1.Service{lb.Service("web", 0, lb.LoadBalancerIP("10.0.0.100"))}, "", servicelb.ReasonAddressNotFree},
		"it asks for another's":      {[]string{"10.0.0.200/29"}, []*corev1.Service{lb.Service("web", 1, lb.LoadBalancerIP("10.0.0.201")), lb.Service("old", 0)}, "", servicelb.ReasonAddressNotFree},
		"both families":              {[]string{"10.0.0.200", "fd00::100-fd00::1ff"}, []*corev1.Service{lb.Service("web", 0, lb.Families(lb.V6, lb.V4))}, "fd00::100 10.0.0.200", servicelb.ReasonServed},
		"the family that there is":   {[]string{"10.0.0.200"}, []*corev1.Service{lb.Service("web", 0, lb.Families(lb.V6, lb.V4))}, "10.0.0.200", servicelb.ReasonServed},
		"nodes' without its family":  {[]string{"fd00::100"}, []*corev1.Service{lb.Service("web", 0)}, "10.0.0.1 10.0.0.2", servicelb.ReasonServed},
		"nodes' if it wants them":    {[]string{"10.0.0.200"}, []*corev1.Service{lb.Service("web", 0, lb.Annotated(servicelb.NodesAnnotation, "true"))}, "10.0.0.1 10.0.0.2", servicelb.ReasonServed},
		"shared":                     {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{lb.Service("web", 1, shared, lb.OnPorts("80/TCP")), lb.Service("old", 0, shared)}, "10.0.0.200", servicelb.ReasonServed},
		"shared, one port":           {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{lb.Service("web", 1, shared), lb.Service("old", 0, shared)}, "10.0.0.201", servicelb.ReasonServed},
		"shared, local, other pods":  {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{lb.Service("web", 1, shared, lb.LocalOnly, lb.OnPorts("80/TCP")), lb.Service("old", 0, shared, lb.LocalOnly)}, "10.0.0.201", servicelb.ReasonServed},
		"shared, local, same pods": {[]string{"10.0.0.200-10.0.0.201"}, []*corev1.Service{lb.Service("web", 1, shared, lb.LocalOnly, lb.OnPorts("80/TCP"), selecting("old")), lb.Service("old", 0, shared, lb.LocalOnly)},
			"10.0.0.200", servicelb.ReasonServed},
		"ports of no other Service there": {[]string{"10.0.0.200"}, []*corev1.Service{lb.Service("web", 0, lb.OnPorts("6443/TCP"))}, "10.0.0.200", servicelb.ReasonServed},
	} {
		t.Run(name, func(t *testing.T) {
			s := &servicelb.State{Services: c.services, Nodes: lb.TwoNodes(), Pools: servicelb.Flagged(c.pool...), Barred: []netip.Addr{netip.MustParseAddr("10.0.0.250")},
				Reserved: map[servicelb.Port]string{loadbalancer.PortOf(corev1.ProtocolTCP, 6443): "the API server"}}
			v := servicelb.Plan(s)[types.NamespacedName{Namespace: "default", Name: "web"}]
			if lb.Text(v.Addresses) != c.want || v.Reason != c.reason {
				t.Errorf("got %q, %s: %s; want %q, %s", lb.Text(v.Addresses), v.Reason, v.Message, c.want, c.reason)
			}
		})
	}
}

// TestPlansAreStableAndWithoutConflicts: whatever Services come and go, no Service has an address or a port that
// another has, none loses what it may keep, and the same state gives the same plan.
func TestPlansAreStableAndWithoutConflicts(t *testing.T) {
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	s := &servicelb.State{Nodes: lb.TwoNodes(), Pools: servicelb.Flagged("10.0.0.200-10.0.0.205", "fd00::100-fd00::103")}
	for step := range 500 {
		if r.IntN(3) == 0 && len(s.Services) > 0 {
			i := r.IntN(len(s.Services))
			s.Services = slices.Delete(s.Services, i, i+1)
		} else {
			change := []func(*corev1.Service){lb.Families([][]corev1.IPFamily{{lb.V4}, {lb.V6}, {lb.V4, lb.V6}}[r.IntN(3)]...), lb.OnPorts(fmt.Sprintf("%d/TCP", 80+r.IntN(3)))}
			if r.IntN(2) == 0 {
				change = append(change, lb.Annotated(servicelb.ShareAnnotation, "x"))
			}
			if r.IntN(4) == 0 {
				change = append(change, lb.LoadBalancerIP(fmt.Sprintf("10.0.0.%d", 199+r.IntN(8))))
			}
			if r.IntN(5) == 0 {
				change = append(change, lb.Annotated(servicelb.NodesAnnotation, "true"))
			}
			s.Services = append(s.Services, lb.Service(fmt.Sprint("s", step), step, change...))
		}
		plan := servicelb.Plan(s)
		testenv.Require(t, fmt.Sprint(plan) == fmt.Sprint(servicelb.Plan(s)), "step %d: the same state gives two plans", step)
		at := map[string]string{}
		for _, svc := range s.Services {
			v := plan[servicelb.Key(svc)]
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
			status, _ := servicelb.StatusOf(svc, v)
			svc.Status = *status
		}
	}
}

func TestCandidatesAreOnTheNetworkAndHaveEndpoints(t *testing.T) {
	m, n, far := lb.Node("m", "10.0.0.1"), lb.Node("n", "10.0.0.2"), lb.Node("far", "10.1.0.2")
	for _, x := range []*corev1.Node{m, n} {
		x.Annotations = map[string]string{loadbalancer.NetworksAnnotation: "10.0.0.0/24,fd00::/64"}
	}
	far.Annotations = map[string]string{loadbalancer.NetworksAnnotation: "10.1.0.0/24"}
	s := &servicelb.State{Nodes: []*corev1.Node{m, n, far}, Pools: servicelb.Flagged("10.0.0.200-10.0.0.201"), Services: []*corev1.Service{lb.Service("web", 0), lb.Service("here", 1, lb.LocalOnly)}}
	s.Slices = append(s.Slices, lb.Slice("here", "n"))
	got := servicelb.Candidates(s, servicelb.Plan(s))
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
