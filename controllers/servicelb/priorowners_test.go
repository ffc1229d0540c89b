// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	nodeutil "k8s.io/kubernetes/pkg/util/node"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/test/services/lb"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestOlderServiceTakesNoPort: a Service that is older, of another namespace, becomes a load balancer with the port
// that a younger one has at nodes' addresses, or names these addresses as its external IPs.
func TestOlderServiceTakesNoPort(t *testing.T) {
	thief := func(change ...func(*corev1.Service)) *corev1.Service {
		return lb.Service("thief", 0, append(change, func(s *corev1.Service) { s.Namespace = "mallory" })...)
	}
	victim := func(change ...func(*corev1.Service)) *corev1.Service {
		return lb.Service("web", 1, append([]func(*corev1.Service){lb.Having("10.0.0.1", "10.0.0.2")}, change...)...)
	}
	for name, c := range map[string]struct {
		victim, thief *corev1.Service
		want, gets    string
	}{
		"a status without ports, of an earlier version": {victim(), thief(), "10.0.0.1 10.0.0.2", ""},
		"a status with ports":                           {victim(lb.WithPorts), thief(), "10.0.0.1 10.0.0.2", ""},
		"external IPs":                                  {victim(), thief(func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"10.0.0.1", "10.0.0.2"} }, lb.OnPorts("443/TCP", "80/TCP")), "10.0.0.1 10.0.0.2", ""},
		"another port":                                  {victim(lb.WithPorts), thief(lb.OnPorts("80/TCP")), "10.0.0.1 10.0.0.2", "10.0.0.1 10.0.0.2"},
		"the victim gives the port up":                  {victim(lb.WithPorts, lb.OnPorts("80/TCP")), thief(), "10.0.0.1 10.0.0.2", "10.0.0.1 10.0.0.2"},
		"the victim asks for one address":               {victim(lb.WithPorts, lb.LoadBalancerIP("10.0.0.1")), thief(), "10.0.0.1", "10.0.0.2"},
		"the victim is no load balancer any more": {victim(lb.WithPorts, func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP }), thief(),
			"", "10.0.0.1 10.0.0.2"},
	} {
		t.Run(name, func(t *testing.T) {
			plan := Plan(&State{Services: []*corev1.Service{c.victim, c.thief}, Nodes: lb.TwoNodes()})
			if v := plan[serviceKey(c.victim)]; lb.Text(v.Addresses) != c.want {
				t.Errorf("the Service that had the port has %q now, want %q: %s", lb.Text(v.Addresses), c.want, v.Message)
			}
			testenv.Equal(t, lb.Text(plan[serviceKey(c.thief)].Addresses), c.gets, "the other one has")
		})
	}
}

// TestPortsAreKeptMeanwhile: a Service that is not served at a node for a while has its port there still.
func TestPortsAreKeptMeanwhile(t *testing.T) {
	web := lb.Service("web", 1, lb.LocalOnly)
	thief := lb.Service("thief", 0, func(s *corev1.Service) { s.Namespace = "mallory" })
	s := &State{Services: []*corev1.Service{web}, Nodes: lb.TwoNodes(), Slices: []*discoveryv1.EndpointSlice{lb.Slice("web", "a")}}
	state := func() string {
		t.Helper()
		planAndWrite(s)
		words := []string{}
		for _, svc := range s.Services {
			words = append(words, ingressText(svc.Status.LoadBalancer))
		}
		return strings.Join(words, ", ")
	}
	expect := func(what, want string) {
		t.Helper()
		testenv.Equal(t, state(), want, "%s:", what)
	}
	expect("alone", "10.0.0.1")
	s.Slices = nil
	expect("its pod restarts", "none")
	s.Services = append(s.Services, thief)
	expect("another Service wants the port meanwhile", "none, 10.0.0.2")
	s.Slices = []*discoveryv1.EndpointSlice{lb.Slice("web", "a")}
	expect("it is back", "10.0.0.1, 10.0.0.2")
	web.Spec.ExternalTrafficPolicy, thief.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyCluster
	lb.Ready(s.Nodes[1], false) // it is a
	expect("its node is away", "none, 10.0.0.2")
	lb.Ready(s.Nodes[1], true)
	expect("its node is back", "10.0.0.1, 10.0.0.2")
	s.Nodes = append(s.Nodes, lb.Node("c", "10.0.0.3"))
	expect("a new node goes by age", "10.0.0.1, 10.0.0.2 10.0.0.3")
	web.Spec.Ports[0].Port = 80
	expect("it gives the port up", "10.0.0.1 10.0.0.2 10.0.0.3, 10.0.0.1 10.0.0.2 10.0.0.3")
	testenv.True(t, len(web.Status.Conditions) == 1, "it keeps nothing any more, and says: %+v", web.Status.Conditions)
	s.Nodes = append(s.Nodes, lb.Node("d", "10.0.0.4"))
	web.Spec.Ports[0].Port = 443
	expect("it wants the port back", "none, 10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4")
}

// TestKeptPortsOfEarlierVersion: a status that a version before v1 wrote keeps the ports, and is written once in the
// present form. The same holds after a leader of such a version has written in between.
func TestKeptPortsOfEarlierVersion(t *testing.T) {
	web := lb.Service("web", 1, lb.LocalOnly, lb.OnPorts("443/TCP", "80/TCP"))
	thief := lb.Service("thief", 0, lb.OnPorts("443/TCP"), func(s *corev1.Service) { s.Namespace = "mallory" })
	for range 2 {
		web.Status = corev1.ServiceStatus{Conditions: []metav1.Condition{{Type: Condition, Status: metav1.ConditionFalse, Reason: ReasonNoNode},
			{Type: loadbalancer.Kept, Status: metav1.ConditionTrue, Reason: "NotServedNow", Message: "443/TCP,80/TCP at 10.0.0.1,10.0.0.2"}}}
		s := &State{Services: []*corev1.Service{web, thief}, Nodes: lb.TwoNodes()}
		plan := Plan(s)
		testenv.Equal(t, len(plan[serviceKey(thief)].Addresses), 0, "addresses of another Service that wants the port:")
		status, changed := StatusOf(web, plan[serviceKey(web)])
		message := meta.FindStatusCondition(status.Conditions, loadbalancer.Kept).Message
		testenv.Equal(t, fmt.Sprint(changed, " ", message), "true v1; 443/TCP,80/TCP at 10.0.0.1,10.0.0.2", "")
		web.Status = *status
		status, changed = StatusOf(web, Plan(s)[serviceKey(web)])
		testenv.False(t, changed, "it is written again: %v", status)
	}
}

// TestForeignPortsAreRefused: whatever happens to Services, pods, endpoints and nodes, a port at a node's address goes
// from one Service to another only when the first one gives it up: it is gone, no load balancer any more, without the
// port, or the node is gone.
func TestForeignPortsAreRefused(t *testing.T) {
	seed := testenv.Seed(t)
	w := &theft{r: rand.New(rand.NewPCG(seed, 0)), has: map[addressPort]types.NamespacedName{}}
	for i := range 4 {
		w.Nodes = append(w.Nodes, lb.Node(fmt.Sprint("n", i), fmt.Sprintf("10.0.0.%d", i+1), fmt.Sprintf("fd00::%d", i+1)))
	}
	for step := range 1500 {
		w.change(step)
		for round := 0; w.round(t, step); round++ {
			testenv.Require(t, round != 10, "step %d: it never rests", step)
		}
	}
	t.Logf("%d times a Service got a port that none had", w.handed)
	t.Logf("%d times a node port was refused", w.refusals)
	testenv.False(t, w.refusals < 100, "only %d times a node port was refused: that tries nothing", w.refusals)
	testenv.False(t, w.handed < 100, "only %d times anybody got a port: that tries nothing", w.handed)
}

// round plans and writes once, and says whether anything was to be written.
func (w *theft) round(t *testing.T, step int) (changed bool) {
	t.Helper()
	plan := Plan(&w.State)
	testenv.Require(t, fmt.Sprint(plan) == fmt.Sprint(Plan(&w.State)), "step %d: the same state gives two plans", step)
	now := map[addressPort]types.NamespacedName{}
	for _, svc := range w.Services {
		v := plan[serviceKey(svc)]
		for _, a := range v.Addresses {
			for _, p := range portsOf(svc) {
				at := addressPort{Address: a, Port: p}
				if before, had := w.has[at]; had && before != serviceKey(svc) {
					t.Fatalf("step %d: %v goes from %s to %s", step, at, before, serviceKey(svc))
				}
				if other, taken := now[at]; taken {
					t.Fatalf("step %d: %s and %s have %v", step, other, serviceKey(svc), at)
				}
				now[at] = serviceKey(svc)
			}
		}
		status, write := StatusOf(svc, v)
		svc.Status, changed = *status, changed || write
	}
	for _, svc := range w.Services {
		w.judgeNodePorts(t, step, svc, plan, now, changed)
	}
	for at, who := range now {
		if _, had := w.has[at]; !had {
			w.handed++
		}
		w.has[at] = who
	}
	return changed
}

// judgeNodePorts: a node port that is opened is no Service's port at nodes' addresses. When the cluster rests the
// proxies refuse the same ones by what the status says.
func (w *theft) judgeNodePorts(t *testing.T, step int, svc *corev1.Service, plan map[types.NamespacedName]Allocation,
	now map[addressPort]types.NamespacedName, changing bool) {
	t.Helper()
	for _, p := range svc.Spec.Ports {
		if p.NodePort == 0 {
			continue
		}
		port := loadbalancer.PortOf(p.Protocol, p.NodePort)
		refused := strings.Contains(plan[serviceKey(svc)].refused, "the node port "+port.String()+" is not opened")
		for at, who := range now {
			if at.Port == port && who != serviceKey(svc) && !refused {
				t.Fatalf("step %d: %s has %v, and it is an open node port of %s", step, who, at, serviceKey(svc))
			}
		}
		if changing {
			continue
		}
		byProxies := slices.ContainsFunc(w.Services, func(o *corev1.Service) bool {
			return serviceKey(o) != serviceKey(svc) && slices.Contains(loadbalancer.Held(o), port)
		})
		if byProxies != refused {
			t.Fatalf("step %d: the node port %s of %s: refused %v by the plan, %v by the proxies", step, port, serviceKey(svc), refused, byProxies)
		}
		if refused {
			w.refusals++
		}
	}
}

// theft is a cluster in which anything happens, with who has what by right.
type theft struct {
	State
	r      *rand.Rand
	has    map[addressPort]types.NamespacedName
	handed int // how often a Service got a port that none had
	// refusals is how often a node port was not opened when the cluster rested.
	refusals int
}

// change does one thing, and takes from has what its owner gives up by that.
func (w *theft) change(step int) {
	pick := func() *corev1.Service {
		if len(w.Services) == 0 {
			return lb.Service("nobody", 0)
		}
		return w.Services[w.r.IntN(len(w.Services))]
	}
	what := w.r.IntN(11)
	if what < 2 && len(w.Services) > 9 {
		what = 2
	}
	switch what {
	case 0, 1:
		change := []func(*corev1.Service){
			lb.Families([][]corev1.IPFamily{{lb.V4}, {lb.V6}, {lb.V4, lb.V6}}[w.r.IntN(3)]...), w.ports(), func(s *corev1.Service) { s.Namespace = fmt.Sprint("ns", w.r.IntN(3)) },
		}
		if w.r.IntN(2) == 0 {
			change = append(change, lb.LocalOnly)
		}
		w.Services = append(w.Services, lb.Service(fmt.Sprint("s", step), w.r.IntN(5000), change...))
	case 2:
		if i := w.r.IntN(len(w.Services) + 1); i < len(w.Services) {
			w.Services = slices.Delete(w.Services, i, i+1)
		}
	case 3:
		w.ports()(pick())
	case 4:
		s := pick()
		s.Spec.Type = []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeLoadBalancer}[w.r.IntN(3)]
	case 5:
		n := w.Nodes[w.r.IntN(len(w.Nodes))]
		lb.Ready(n, !nodeutil.IsNodeReady(n))
	case 6, 7:
		w.endpoints()
	case 8:
		w.Pods = nil
		if w.r.IntN(2) == 0 {
			w.Pods = append(w.Pods, lb.HostPortPod("p", fmt.Sprint("n", w.r.IntN(4)), "p", int32(80+w.r.IntN(3))))
		}
	case 10:
		if s := pick(); s.Spec.Ports[0].NodePort == 0 {
			s.Spec.Ports[0].NodePort = int32(80 + w.r.IntN(3))
		} else {
			s.Spec.Ports[0].NodePort = 0
		}
	case 9:
		s := pick()
		if s.Spec.ExternalTrafficPolicy = ""; w.r.IntN(2) == 0 {
			lb.LocalOnly(s)
		}
	}
	maps.DeleteFunc(w.has, func(at addressPort, who types.NamespacedName) bool {
		return !slices.ContainsFunc(w.Services, func(s *corev1.Service) bool {
			return serviceKey(s) == who && s.Spec.Type == corev1.ServiceTypeLoadBalancer && slices.Contains(portsOf(s), at.Port)
		})
	})
}

func (w *theft) ports() func(*corev1.Service) {
	texts := []string{}
	for _, p := range w.r.Perm(3)[:1+w.r.IntN(2)] {
		texts = append(texts, fmt.Sprintf("%d/TCP", 80+p))
	}
	return lb.OnPorts(texts...)
}

func (w *theft) endpoints() {
	w.Slices = nil
	for _, s := range w.Services {
		var at []string
		for _, n := range w.Nodes {
			if w.r.IntN(3) == 0 {
				at = append(at, n.Name)
			}
		}
		sl := lb.Slice(s.Name, at...)
		sl.Namespace = s.Namespace
		w.Slices = append(w.Slices, sl)
	}
}

func at(address, port string) addressPort {
	return addressPort{Address: netip.MustParseAddr(address), Port: portsOf(lb.Service("x", 0, lb.OnPorts(port)))[0]}
}

// withNodePorts gives a Service's ports node ports, one after the other.
func withNodePorts(numbers ...int32) func(*corev1.Service) {
	return func(s *corev1.Service) {
		for i, n := range numbers {
			s.Spec.Ports[i].NodePort = n
		}
	}
}

// TestPortsOfNodePorts: at nodes' addresses a Service has a port of the node ports' range only if that is its own node
// port, also if it has had it before.
func TestPortsOfNodePorts(t *testing.T) {
	const refused = "port 30080/TCP is of the range from which node ports are given out (30000-32767)"
	had := []func(*corev1.Service){lb.Having("10.0.0.1", "10.0.0.2"), lb.WithPorts}
	for name, c := range map[string]struct {
		change []func(*corev1.Service)
		pools  []Pool
		want   string
	}{
		"no node port":                        {change: []func(*corev1.Service){lb.OnPorts("30080/TCP")}},
		"another node port":                   {change: []func(*corev1.Service){lb.OnPorts("30080/TCP"), withNodePorts(30081)}},
		"its own of another protocol":         {change: []func(*corev1.Service){lb.OnPorts("30080/TCP", "30081/UDP"), withNodePorts(0, 30080)}},
		"one port of several":                 {change: []func(*corev1.Service){lb.OnPorts("443/TCP", "30080/TCP"), withNodePorts(30443, 30444)}},
		"it has had it":                       {change: append([]func(*corev1.Service){lb.OnPorts("30080/TCP")}, had...)},
		"its own node port":                   {change: []func(*corev1.Service){lb.OnPorts("30080/TCP"), withNodePorts(30080)}, want: "10.0.0.1 10.0.0.2"},
		"its own node port of UDP":            {change: []func(*corev1.Service){lb.OnPorts("30080/UDP"), withNodePorts(30080)}, want: "10.0.0.1 10.0.0.2"},
		"outside of the range, below":         {change: []func(*corev1.Service){lb.OnPorts("29999/TCP")}, want: "10.0.0.1 10.0.0.2"},
		"outside of the range, above":         {change: []func(*corev1.Service){lb.OnPorts("32768/TCP"), withNodePorts(30080)}, want: "10.0.0.1 10.0.0.2"},
		"an address of a pool is all its own": {change: []func(*corev1.Service){lb.OnPorts("30080/TCP")}, pools: flagged("10.0.0.200-10.0.0.200"), want: "10.0.0.200"},
	} {
		t.Run(name, func(t *testing.T) {
			web := lb.Service("web", 0, c.change...)
			s := &State{Services: []*corev1.Service{web}, Nodes: lb.TwoNodes(), Pools: c.pools, NodePorts: utilnet.PortRange{Base: 30000, Size: 2768}}
			v := Plan(s)[serviceKey(web)]
			if lb.Text(v.Addresses) != c.want || len(v.heldPorts) > 0 {
				t.Errorf("it has %q, want %q; kept %v: %s", lb.Text(v.Addresses), c.want, v.heldPorts, v.Message)
			}
			if c.want == "" && (v.Reason != ReasonNodePortRange || !strings.HasPrefix(v.Message, refused)) {
				t.Errorf("it reads %s: %s", v.Reason, v.Message)
			}
		})
	}
}
