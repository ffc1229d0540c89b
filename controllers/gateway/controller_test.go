// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/coracle-k8s/coracle/controllers/servicelb"
	"github.com/coracle-k8s/coracle/ingress/gateway"
	"github.com/coracle-k8s/coracle/ingress/gatewayapi"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestSitesKeepTheirChosenPorts(t *testing.T) {
	have := map[string]uint16{"a:g:80": 10060, "b:g:80": 10062, "gone:g:80": 10061}
	data, without := choosePorts(have, []string{"c:g:80", "b:g:80", "a:g:80", "c:g:443"})
	testenv.Equal(t, fmt.Sprint(data, without), "map[10060:a:g:80 10061:c:g:443 10062:b:g:80 10063:c:g:80] []", "the ports are")
	var many []string
	for i := range table.LastGatewayPort - table.FirstGatewayPort + 3 {
		many = append(many, fmt.Sprintf("n%d:g:%05d", i%3, i))
	}
	data, without = choosePorts(nil, many)
	testenv.True(t, len(data) == table.LastGatewayPort-table.FirstGatewayPort+1 && len(without) == 2,
		"%d sites have ports, %v have none", len(data), without)
	have = map[string]uint16{}
	for port := table.FirstGatewayPort; port <= table.LastGatewayPort; port++ {
		have[fmt.Sprintf("n:g:%d", port)] = uint16(port)
	}
	if data, _ = choosePorts(have, slices.Collect(maps.Keys(have))); len(data) != len(have) {
		t.Errorf("of %d sites with ports %d keep theirs", len(have), len(data))
	}
}

// TestOneNamespaceHasHalfOfThePorts: however many Gateways it has, those of others get ports.
func TestOneNamespaceHasHalfOfThePorts(t *testing.T) {
	var sites []string
	for i := range 1000 {
		sites = append(sites, gateway.Site("a", "g", int32(i)))
	}
	data, _ := choosePorts(nil, append(sites, gateway.Site("b", "g", 80)))
	if len(data) != maxPorts+1 || !slices.Contains(slices.Collect(maps.Values(data)), gateway.Site("b", "g", 80)) {
		t.Errorf("%d sites have ports", len(data))
	}
}

// bed is a controller in fake time, with the objects of the Gateway API that state has.
type bed struct {
	*testing.T
	client     *fake.Clientset
	controller *Controller
	events     *record.FakeRecorder

	mu       sync.Mutex
	state    gateway.State
	complete bool
}

func run(t *testing.T, objects []*corev1.Service, test func(b *bed)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bed{T: t, client: fake.NewClientset(), events: record.NewFakeRecorder(20), complete: true}
		for _, o := range objects {
			testenv.NoError(t, b.client.Tracker().Add(o))
		}
		b.state.Classes = []*gatewayv1.GatewayClass{{ObjectMeta: metav1.ObjectMeta{Name: "coracle"}, Spec: gatewayv1.GatewayClassSpec{ControllerName: gateway.ControllerName}}}
		factory := informers.NewSharedInformerFactory(b.client, 0)
		c := testenv.Must(New(Options{
			Client: b.client, Informers: factory, Recorder: b.events, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
			State: func() (gateway.State, bool) {
				b.mu.Lock()
				defer b.mu.Unlock()
				return b.state, b.complete
			},
			Status: b.status,
		}))(t)
		b.controller = c
		ctx, cancel := context.WithCancel(t.Context())
		factory.Start(ctx.Done())
		var running sync.WaitGroup
		running.Go(func() { testenv.Check(t, c.Run(ctx)) })
		test(b)
		cancel()
		running.Wait()
		factory.Shutdown()
	})
}

// status is the API server's part of writing a status.
func (b *bed) status(_ context.Context, resource string, o Object) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch o := o.(type) {
	case *gatewayv1.Gateway:
		b.state.Gateways = slices.Clone(b.state.Gateways)
		for i, g := range b.state.Gateways {
			if g.UID == o.UID {
				b.state.Gateways[i] = o
			}
		}
	case *gatewayv1.GatewayClass:
		b.state.Classes = []*gatewayv1.GatewayClass{o}
	default:
		b.Errorf("the status of %s was written", resource)
	}
	b.controller.Changed()
	return nil
}

func (b *bed) set(change func(s *gateway.State)) {
	b.mu.Lock()
	change(&b.state)
	b.mu.Unlock()
	b.controller.Changed()
	time.Sleep(time.Second)
	synctest.Wait()
}

func (b *bed) gateway() *gatewayv1.Gateway {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state.Gateways[0]
}

func (b *bed) service(namespace, name string) *corev1.Service {
	b.Helper()
	return testenv.Must(b.client.CoreV1().Services(namespace).Get(b.Context(), name, metav1.GetOptions{}))(b)
}

func (b *bed) services() (out []string) {
	all := testenv.Must(b.client.CoreV1().Services("").List(b.Context(), metav1.ListOptions{}))(b)
	for _, s := range all.Items {
		out = append(out, s.Namespace+"/"+s.Name)
	}
	return out
}

func (b *bed) ports() map[string]string {
	c, err := b.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(b.Context(), gatewayapi.PortsName, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return c.Data
}

func (b *bed) slices() string {
	all := testenv.Must(
		b.client.DiscoveryV1().EndpointSlices("").List(b.Context(), metav1.ListOptions{LabelSelector: labels.Everything().String()}))(b)
	var out []string
	for _, s := range all.Items {
		text := s.Namespace + "/" + s.Labels["kubernetes.io/service-name"]
		for _, p := range s.Ports {
			text += fmt.Sprintf(" %s=%d", *p.Name, *p.Port)
		}
		for _, e := range s.Endpoints {
			text += " " + *e.NodeName
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

func newGateway(uid string, ports ...int32) *gatewayv1.Gateway {
	g := &gatewayv1.Gateway{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: types.UID(uid), Generation: 1},
		Spec:       gatewayv1.GatewaySpec{GatewayClassName: "coracle"},
	}
	for _, p := range ports {
		g.Spec.Listeners = append(g.Spec.Listeners, gatewayv1.Listener{
			Name: gatewayv1.SectionName(fmt.Sprint("l", p)), Port: gatewayv1.PortNumber(p), Protocol: gatewayv1.HTTPProtocolType,
		})
	}
	return g
}

func node(name, annotation string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{table.NodeAnnotation: annotation}},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		},
	}
}

func TestServicesFollowGatewaysLife(t *testing.T) {
	run(t, nil, func(b *bed) {
		time.Sleep(time.Hour)
		if got := b.services(); len(got) > 0 || b.ports() != nil {
			t.Errorf("without a Gateway there are %v, %v", got, b.ports())
		}
		g := newGateway("1", 80, 8080)
		g.Spec.Addresses = []gatewayv1.GatewaySpecAddress{{Value: "192.0.2.80"}}
		g.Spec.Infrastructure = &gatewayv1.GatewayInfrastructure{
			Labels: map[gatewayv1.LabelKey]gatewayv1.LabelValue{"team": "shop"}, Annotations: map[gatewayv1.AnnotationKey]gatewayv1.AnnotationValue{"note": "a"},
		}
		b.set(func(s *gateway.State) { s.Gateways = []*gatewayv1.Gateway{g} })
		svc := b.service("shop", "gateway-web")
		if svc.Labels[table.GatewayLabel] != "web" || svc.Labels["team"] != "shop" || svc.Annotations["note"] != "a" ||
			svc.Annotations[servicelb.AddressesAnnotation] != "192.0.2.80" || svc.Spec.Type != corev1.ServiceTypeLoadBalancer ||
			svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal || len(svc.Spec.Selector) > 0 || len(svc.Spec.Ports) != 2 {
			t.Errorf("the Service is %+v", svc)
		}
		testenv.True(t, isOf(svc, g), "its owner is %v", svc.OwnerReferences)
		testenv.Equal(t, fmt.Sprint(b.ports()), "map[10060:shop:web:80 10061:shop:web:8080]", "the ports are")

		// Nodes: one serves both ports, one another Gateway's site at the same port.
		said := "http=10054,https=10055,10060=" + table.SiteMark("shop:web:80") + ",10061=" + table.SiteMark("shop:web:8080")
		busy := said + "," + table.BusyEntry + "=8080" // another program has the Gateway's port
		for _, n := range []*corev1.Node{node("a", said), node("b", "10060="+table.SiteMark("other:web:80")), node("c", busy)} {
			testenv.Must(b.client.CoreV1().Nodes().Create(b.Context(), n, metav1.CreateOptions{}))(t)
		}
		time.Sleep(time.Second)
		testenv.Equal(t, b.slices(), "shop/gateway-web port-80=10060 port-8080=10061 a", "the slices are")

		testenv.Contains(t, <-b.events.Events, "the node c is no address of the Gateway: another program there listens at TCP 8080 ", "the event is")

		// The Service's address becomes the Gateway's. It is no node's, so the program conflicts with none.
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.80"}}
		testenv.Must(b.client.CoreV1().Services("shop").UpdateStatus(b.Context(), svc, metav1.UpdateOptions{}))(t)
		time.Sleep(time.Second)
		now := b.gateway()
		testenv.True(t, len(now.Status.Addresses) == 1 && now.Status.Addresses[0].Value == "192.0.2.80",
			"the Gateway's addresses are %v", now.Status.Addresses)
		programmed := slices.IndexFunc(now.Status.Conditions, func(c metav1.Condition) bool {
			return c.Type == string(gatewayv1.GatewayConditionProgrammed) && c.Status == metav1.ConditionTrue
		})
		if programmed < 0 {
			t.Errorf("the Gateway's conditions are %v", now.Status.Conditions)
		}

		// A tenant who may write the Service gives ports to none: they come from elsewhere, and the Service is put
		// right.
		svc = b.service("shop", "gateway-web")
		svc.Annotations["coracle.dev/gateway-ports"] = "80=10070"
		svc.Spec.Ports[0].TargetPort.StrVal = "elsewhere"
		testenv.Must(b.client.CoreV1().Services("shop").Update(b.Context(), svc, metav1.UpdateOptions{}))(t)
		time.Sleep(time.Second)
		if got := b.service("shop", "gateway-web"); got.Spec.Ports[0].TargetPort.StrVal != "port-80" {
			t.Errorf("the Service leads to %v", got.Spec.Ports)
		}
		testenv.Equal(t, fmt.Sprint(b.ports()), "map[10060:shop:web:80 10061:shop:web:8080]", "the ports are")

		// Objects that are being read again are not gone.
		b.mu.Lock()
		before := b.state
		b.state, b.complete = gateway.State{}, false
		b.mu.Unlock()
		b.controller.Changed()
		time.Sleep(time.Minute)
		testenv.Equal(t, len(b.services()), 1, "while objects are read there are")
		b.set(func(s *gateway.State) { *s, b.complete = before, true })

		// One listener less, then the Gateway's end.
		less := b.gateway().DeepCopy()
		less.Spec.Listeners = less.Spec.Listeners[1:]
		b.set(func(s *gateway.State) { s.Gateways = []*gatewayv1.Gateway{less} })
		testenv.Equal(t, fmt.Sprint(b.ports()), "map[10061:shop:web:8080]", "with one listener the ports are")
		testenv.Equal(t, b.slices(), "shop/gateway-web port-8080=10061 a c", "with one listener the slices are")
		b.set(func(s *gateway.State) { s.Gateways = nil })
		time.Sleep(time.Second)
		if got := b.services(); len(got) > 0 || b.ports() != nil || b.slices() != "" {
			t.Errorf("after the Gateway's end there are %v, %v, %s", got, b.ports(), b.slices())
		}
	})
}

func TestAnotherGatewayOfTheName(t *testing.T) {
	run(t, nil, func(b *bed) {
		b.set(func(s *gateway.State) { s.Gateways = []*gatewayv1.Gateway{newGateway("1", 80)} })
		b.set(func(s *gateway.State) { s.Gateways = []*gatewayv1.Gateway{newGateway("2", 80)} })
		time.Sleep(time.Second)
		if svc := b.service("shop", "gateway-web"); !isOf(svc, b.gateway()) {
			t.Errorf("the Service has the owner %v", svc.OwnerReferences)
		}
	})
}

// TestForeignServiceIsNotAdopted: what a tenant has made is left alone, and gives a Gateway nothing.
func TestForeignServiceIsNotAdopted(t *testing.T) {
	tenants := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "gateway-web", Labels: map[string]string{table.GatewayLabel: "web"}, Annotations: map[string]string{"coracle.dev/gateway-ports": "80=10060"},
		},
		Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "mine"}},
	}
	run(t, []*corev1.Service{tenants}, func(b *bed) {
		time.Sleep(time.Minute)
		if got := b.services(); len(got) != 1 || b.ports() != nil {
			t.Errorf("without a Gateway there are %v, %v", got, b.ports())
		}
		b.set(func(s *gateway.State) { s.Gateways = []*gatewayv1.Gateway{newGateway("1", 80)} })
		b.set(func(*gateway.State) {})
		if svc := b.service("shop", "gateway-web"); !maps.Equal(svc.Spec.Selector, tenants.Spec.Selector) {
			t.Errorf("the tenant's Service is %+v", svc.Spec)
		}
		close(b.events.Events)
		var said []string
		for e := range b.events.Events {
			said = append(said, e)
		}
		testenv.False(t, len(said) != 1 || !strings.Contains(said[0], ReasonServiceExists), "the events are %q", said)
	})
}
