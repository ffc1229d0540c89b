// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/controllers/ingress"
	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func node(name, ports string, ready bool, addresses ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{table.NodeAnnotation: ports}}}
	state := corev1.ConditionFalse
	if ready {
		state = corev1.ConditionTrue
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: state}}
	for _, a := range addresses {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return n
}

func slicesText(all map[string]*discoveryv1.EndpointSlice) string {
	var out []string
	for _, s := range all {
		text := string(s.AddressType)
		for _, p := range s.Ports {
			text += fmt.Sprintf(" %s=%d", *p.Name, *p.Port)
			if *p.Protocol != corev1.ProtocolTCP {
				text += "/" + string(*p.Protocol)
			}
		}
		for _, e := range s.Endpoints {
			text += fmt.Sprintf(" %s@%s", e.Addresses[0], *e.NodeName)
			if !*e.Conditions.Ready {
				text += "(not ready)"
			}
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

func TestSlicesNameNodesThatServe(t *testing.T) {
	usual := "http=10080,https=10443"
	for _, c := range []struct {
		name  string
		nodes []*corev1.Node
		want  string
	}{
		{"none", []*corev1.Node{node("a", "", true, "192.0.2.1")}, ""},
		{"of both families", []*corev1.Node{node("a", usual, true, "192.0.2.1", "2001:db8::1")},
			"IPv4 http=10080 https=10443 192.0.2.1@a; IPv6 http=10080 https=10443 2001:db8::1@a"},
		{"not ready", []*corev1.Node{node("b", usual, false, "192.0.2.2"), node("a", usual, true, "192.0.2.1")},
			"IPv4 http=10080 https=10443 192.0.2.1@a 192.0.2.2@b(not ready)"},
		{"with other ports", []*corev1.Node{node("a", usual, true, "192.0.2.1"), node("b", "http=33001,https=10443", true, "192.0.2.2")},
			"IPv4 http=10080 https=10443 192.0.2.1@a; IPv4 http=33001 https=10443 192.0.2.2@b"},
		{"of which one has HTTP/3", []*corev1.Node{node("a", usual, true, "192.0.2.1"), node("b", "http=10080,http3=10443,https=10443", true, "192.0.2.2")},
			"IPv4 http=10080 http3=10443/UDP https=10443 192.0.2.2@b; IPv4 http=10080 https=10443 192.0.2.1@a"},
		{"with a forged annotation", []*corev1.Node{node("a", "http=0,https=70000,ssh=22,https=-1,=", true, "192.0.2.1")}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			testenv.Equal(t, slicesText(ingress.SlicesOf(c.nodes)), c.want, "the slices are")
			slices.Reverse(c.nodes)
			testenv.Equal(t, slicesText(ingress.SlicesOf(c.nodes)), c.want, "in another order they are")
		})
	}
	var many []*corev1.Node
	for i := range 250 {
		many = append(many, node(fmt.Sprintf("n%03d", i), usual, true, fmt.Sprintf("10.0.%d.%d", i/200, i%200+1)))
	}
	all := ingress.SlicesOf(many)
	if names := slices.Sorted(maps.Keys(all)); len(names) != 3 || len(all[names[0]].Endpoints) != ingress.PerSlice || len(all[names[2]].Endpoints) != 50 {
		t.Errorf("250 nodes have the slices %v", names)
	}
}

// bed is a controller that runs with a fake API, in fake time.
type bed struct {
	*testing.T
	client *fake.Clientset
	events *record.FakeRecorder
}

func run(t *testing.T, test func(b bed)) {
	runPrepared(t, func(*fake.Clientset) {}, test)
}

// runPrepared calls prepare before the controller uses the fake API, whose reactors have no lock.
func runPrepared(t *testing.T, prepare func(*fake.Clientset), test func(b bed)) {
	synctest.Test(t, func(t *testing.T) {
		b := bed{t, fake.NewClientset(), record.NewFakeRecorder(100)}
		prepare(b.client)
		factory := informers.NewSharedInformerFactory(b.client, 0)
		c := testenv.Must(ingress.New(ingress.Options{Client: b.client, Informers: factory, Recorder: b.events,
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
			ReservedNodePorts: []uint16{10250}}))(t)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		factory.Start(ctx.Done())
		running.Go(func() { testenv.Check(t, c.Run(ctx)) })
		test(b)
		cancel()
		running.Wait()
		factory.Shutdown()
	})
}

// settle lets fake time pass until all is written that follows from what was done.
func (b bed) settle() {
	time.Sleep(time.Second)
	synctest.Wait()
}

func (b bed) service() *corev1.Service {
	svc, err := b.client.CoreV1().Services(metav1.NamespaceSystem).Get(b.Context(), table.Service, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	testenv.NoError(b, err)
	return svc
}

func (b bed) slices() string {
	all := testenv.Must(b.client.DiscoveryV1().EndpointSlices(metav1.NamespaceSystem).List(b.Context(), metav1.ListOptions{LabelSelector: labels.Everything().String()}))(b)
	out := map[string]*discoveryv1.EndpointSlice{}
	for i := range all.Items {
		out[all.Items[i].Name] = &all.Items[i]
	}
	return slicesText(out)
}

func (b bed) said() string {
	var out []string
	for {
		select {
		case e := <-b.events.Events:
			out = append(out, e)
		default:
			return strings.Join(out, "; ")
		}
	}
}

func (b bed) create(ing *networkingv1.Ingress) {
	testenv.Must(b.client.NetworkingV1().Ingresses(ing.Namespace).Create(b.Context(), ing, metav1.CreateOptions{}))(b)
}

func web() *networkingv1.Ingress {
	return &networkingv1.Ingress{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: networkingv1.IngressSpec{IngressClassName: ptr.To(compile.Class), DefaultBackend: &networkingv1.IngressBackend{
			Service: &networkingv1.IngressServiceBackend{Name: "web", Port: networkingv1.ServiceBackendPort{Number: 80}},
		}},
	}
}

// TestServiceExistsWhileIngressesDo goes through the life of a cluster's only Ingress.
func TestServiceExistsWhileIngressesDo(t *testing.T) {
	run(t, func(b bed) {
		nodes := b.client.CoreV1().Nodes()
		testenv.Must(nodes.Create(b.Context(), node("a", "http=10080,https=10443", true, "192.0.2.1"), metav1.CreateOptions{}))(b)
		b.settle()
		testenv.Require(t, b.service() == nil && b.slices() == "", "there is a Service without an Ingress")
		b.create(web())
		b.settle()
		svc := b.service()
		if svc == nil || svc.Spec.Type != corev1.ServiceTypeLoadBalancer || svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
			t.Fatalf("the Service is %v", svc)
		}
		testenv.Equal(t, b.slices(), "IPv4 http=10080 https=10443 192.0.2.1@a", "the slices are")
		testenv.Equal(t, b.said(), "Warning BadBackend there is no Service web in the namespace shop", "events:")
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
		testenv.Must(b.client.CoreV1().Services(metav1.NamespaceSystem).UpdateStatus(b.Context(), svc, metav1.UpdateOptions{}))(b)
		testenv.Must(nodes.Update(b.Context(), node("a", "http=10080,https=10443", false, "192.0.2.1"), metav1.UpdateOptions{}))(b)
		b.settle()
		ing, err := b.client.NetworkingV1().Ingresses("shop").Get(b.Context(), "web", metav1.GetOptions{})
		if err != nil || len(ing.Status.LoadBalancer.Ingress) != 1 || ing.Status.LoadBalancer.Ingress[0].IP != "192.0.2.1" {
			t.Errorf("the Ingress' status is %v (%v)", ing.Status, err)
		}
		testenv.Equal(t, b.slices(), "IPv4 http=10080 https=10443 192.0.2.1@a(not ready)", "the slices are")
		testenv.Equal(t, b.said(), "", "said again:")

		testenv.NoError(b, b.client.NetworkingV1().Ingresses("shop").Delete(b.Context(), "web", metav1.DeleteOptions{}))
		time.Sleep(ingress.UnusedFor - time.Minute) // fake time
		testenv.True(t, b.service() != nil, "the Service has gone with its only Ingress, which may be replaced")
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		testenv.True(t, b.service() == nil, "the Service is still there")
	})
}

// TestServiceHasThePortOfHTTP3: unless another load balancer has it, beside which the Service would get no address.
func TestServiceHasThePortOfHTTP3(t *testing.T) {
	for _, taken := range []bool{false, true} {
		run(t, func(b bed) {
			other := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "vpn"}, Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 443, Protocol: corev1.ProtocolTCP}},
			}}
			if taken {
				other.Spec.Ports[0].Protocol = corev1.ProtocolUDP
			}
			testenv.Must(b.client.CoreV1().Services("other").Create(b.Context(), other, metav1.CreateOptions{}))(b)
			b.settle()
			b.create(web())
			b.settle()
			has := slices.ContainsFunc(b.service().Spec.Ports, func(p corev1.ServicePort) bool {
				return p.Name == table.QUIC && p.Port == 443 && p.Protocol == corev1.ProtocolUDP
			})
			if has == taken {
				t.Errorf("another Service has the UDP port: %t; the Service has the ports %v", taken, b.service().Spec.Ports)
			}
		})
	}
}

// TestForeignServiceIsNotChanged: one that is there is left alone.
func TestForeignServiceIsNotChanged(t *testing.T) {
	run(t, func(b bed) {
		other := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: table.Service}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP}}
		testenv.Must(b.client.CoreV1().Services(metav1.NamespaceSystem).Create(b.Context(), other, metav1.CreateOptions{}))(b)
		b.create(web())
		b.settle()
		if svc := b.service(); svc == nil || svc.Spec.Type != corev1.ServiceTypeClusterIP {
			t.Errorf("the Service is %v", svc)
		}
		testenv.Equal(t, b.slices(), "", "it has slices:")
	})
}

// TestNodeWithOccupiedPortIsNoEndpoint: a node where another program has a port of the Service is none of its
// endpoints, and an event says so, as long as its addresses are nodes'.
func TestNodeWithOccupiedPortIsNoEndpoint(t *testing.T) {
	run(t, func(b bed) {
		nodes := b.client.CoreV1().Nodes()
		for _, n := range []*corev1.Node{
			node("a", "http=10054,https=10055", true, "192.0.2.1"), node("b", "http=10054,https=10055,busy=80,busy=443", true, "192.0.2.2"),
			node("c", "http=10054,https=10055,busy=8080", true, "192.0.2.3"), // no port of the Service
		} {
			testenv.Must(nodes.Create(b.Context(), n, metav1.CreateOptions{}))(b)
		}
		ing := web()
		ing.Spec.DefaultBackend = nil // of which nothing is to be said
		b.create(ing)
		b.settle()
		const two = "IPv4 http=10054 https=10055 192.0.2.1@a 192.0.2.3@c"
		const all = "IPv4 http=10054 https=10055 192.0.2.1@a 192.0.2.2@b 192.0.2.3@c"
		testenv.Equal(t, b.slices(), two, "the slices are")
		said := b.said()
		if strings.Count(said, ingress.ReasonPortInUse) != 1 || !strings.Contains(said, "the node b is no address of Ingresses: another program there listens at TCP 80, 443") {
			t.Errorf("the events are %q", said)
		}
		addresses := func(ips ...string) {
			svc := b.service()
			svc.Status.LoadBalancer.Ingress = nil
			for _, ip := range ips {
				svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
			}
			testenv.Must(b.client.CoreV1().Services(metav1.NamespaceSystem).UpdateStatus(b.Context(), svc, metav1.UpdateOptions{}))(b)
			b.settle()
		}
		addresses("192.0.2.1", "192.0.2.3")
		testenv.Equal(t, b.slices(), two, "with addresses of nodes the slices are")
		addresses("198.51.100.7")
		testenv.Equal(t, b.slices(), all, "with an address of a pool the slices are")
		addresses("192.0.2.1", "192.0.2.3")
		if got := b.slices(); got != two || !strings.Contains(b.said(), ingress.ReasonPortInUse) {
			t.Errorf("with addresses of nodes again the slices are %s", got)
		}
		testenv.Must(nodes.Update(b.Context(), node("b", "http=10054,https=10055", true, "192.0.2.2"), metav1.UpdateOptions{}))(b)
		b.settle()
		testenv.Equal(t, b.slices(), all, "when the program has ended the slices are")
		testenv.Equal(t, b.said(), "", "events:")
	})
}

// TestBadDefaultsAreReportedOnceAsEvents: what is wrong with the ConfigMap is said once, as events of it.
func TestBadDefaultsAreReportedOnceAsEvents(t *testing.T) {
	run(t, func(b bed) {
		ing := web()
		ing.Spec.DefaultBackend = nil // of which nothing is to be said
		b.create(ing)
		b.settle()
		m := &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: compile.Defaults.Namespace, Name: compile.Defaults.Name},
			Data:       map[string]string{"proxy-body-size": "much", "worker-processes": "4"},
		}
		client := b.client.CoreV1().ConfigMaps(m.Namespace)
		testenv.Must(client.Create(b.Context(), m, metav1.CreateOptions{}))(b)
		b.settle()
		said := b.said()
		if strings.Count(said, "worker-processes") != 1 || strings.Count(said, `proxy-body-size is "much"`) != 2 { // of the ConfigMap and of the Ingress
			t.Errorf("the events are %q", said)
		}
		m.Data = map[string]string{"proxy-body-size": "8m", "worker-processes": "4"}
		testenv.Must(client.Update(b.Context(), m, metav1.UpdateOptions{}))(b)
		b.settle()
		testenv.Equal(t, b.said(), "", "the events after the correction are")
	})
}
