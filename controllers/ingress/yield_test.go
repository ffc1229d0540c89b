// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/controllers/ingress"
	"github.com/coracle-k8s/coracle/controllers/servicelb"
	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// balancer is a load balancer's Service with these TCP ports.
func balancer(name string, ports ...int32) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: name, UID: types.UID(name)},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}},
	}
	for _, p := range ports {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Port: p, Protocol: corev1.ProtocolTCP})
	}
	return svc
}

// at gives a Service an address, and the condition of servicelb.
func at(svc *corev1.Service, ip, reason string) *corev1.Service {
	if ip != "" {
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: ip}}
	}
	meta.SetStatusCondition(&svc.Status.Conditions, metav1.Condition{Type: loadbalancer.Condition, Status: metav1.ConditionFalse, Reason: reason})
	return svc
}

func (b bed) other(svc *corev1.Service) {
	testenv.Must(b.client.CoreV1().Services(svc.Namespace).Create(b.Context(), svc, metav1.CreateOptions{}))(b)
}

func (b bed) removeIngress() {
	testenv.NoError(b, b.client.NetworkingV1().Ingresses("shop").Delete(b.Context(), "web", metav1.DeleteOptions{}))
}

// gone waits for the Service's deletion, and returns the time until then.
func (b bed) gone(within time.Duration) time.Duration {
	began := time.Now()
	for time.Since(began) < within {
		time.Sleep(time.Second) // fake time
		synctest.Wait()
		if b.service() == nil {
			break
		}
	}
	return time.Since(began)
}

// TestPortsAreGivenUpForAnotherService: without an Ingress, the Service stays for ten minutes, but for half a minute
// where another one waits for its ports.
func TestPortsAreGivenUpForAnotherService(t *testing.T) {
	late, usual := ingress.YieldAfter+2*time.Second, ingress.UnusedFor+2*time.Second
	deleting := balancer("nginx", 80)
	deleting.DeletionTimestamp, deleting.Finalizers = &metav1.Time{}, []string{"a/b"}
	local := balancer("nginx", 80)
	local.Spec.Type = corev1.ServiceTypeNodePort
	udp := balancer("vpn", 443)
	udp.Spec.Ports[0].Protocol = corev1.ProtocolUDP
	classed := balancer("nginx", 80)
	classed.Spec.LoadBalancerClass = ptr.To("example.org/cloud")
	ours := balancer("nginx", 80)
	ours.Spec.LoadBalancerClass = ptr.To(servicelb.Class)
	gateway := balancer("gateway-web", 443)
	gateway.Labels = map[string]string{table.GatewayLabel: "web"}
	for _, c := range []struct {
		name  string
		other *corev1.Service
		want  time.Duration
	}{
		{"none", nil, usual},
		{"without an address", balancer("nginx", 80, 443), late},
		{"of one of the ports", balancer("nginx", 8080, 443), late},
		{"with the class written out", ours, late},
		{"of a Gateway", gateway, late},
		{"refused at some nodes", at(balancer("nginx", 80), "192.0.2.2", servicelb.ReasonPortInUse), late},
		{"of the port of HTTP/3", udp, late},
		{"of other ports", balancer("nginx", 8080), usual},
		{"that has an address of a pool", at(balancer("nginx", 80), "198.51.100.7", servicelb.ReasonServed), usual},
		{"of another class", classed, usual},
		{"of another type", local, usual},
		{"that is being deleted", deleting, usual},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, func(b bed) {
				b.create(web())
				b.settle()
				if c.other != nil {
					b.other(c.other)
					b.settle()
				}
				b.removeIngress()
				if took := b.gone(2 * usual); took > c.want || took < c.want-3*time.Second {
					t.Errorf("beside a Service %s the ports are given up after %s, want %s", c.name, took, c.want)
				}
			})
		})
	}
}

// TestPortsAreKept: an Ingress that comes back in time keeps the Service, a Service that comes later gets the ports at
// once, and a new leader counts from its start.
func TestPortsAreKept(t *testing.T) {
	run(t, func(b bed) {
		b.create(web())
		b.other(balancer("nginx", 80, 443))
		b.settle()
		for range 3 {
			b.removeIngress()
			time.Sleep(ingress.YieldAfter - time.Second) // fake time
			synctest.Wait()
			testenv.True(t, b.service() != nil, "the Service has gone too early")
			b.create(web())
			time.Sleep(10 * ingress.YieldAfter) // fake time
			synctest.Wait()
			testenv.True(t, b.service() != nil, "the Service has gone although there is an Ingress again")
		}
	})
	run(t, func(b bed) {
		b.create(web())
		b.settle()
		b.removeIngress()
		time.Sleep(ingress.UnusedFor / 2) // fake time
		b.other(balancer("nginx", 80))
		b.settle()
		testenv.True(t, b.service() == nil, "the Service keeps the ports that another one wants, without a host for minutes")
	})
	old := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: table.Service, Labels: ingress.OwnLabels()},
		Spec: balancer("", 80, 443).Spec}
	runPrepared(t, func(c *fake.Clientset) { testenv.NoError(t, c.Tracker().Add(old)) }, func(b bed) {
		b.other(balancer("nginx", 80))
		took := b.gone(ingress.UnusedFor)
		testenv.True(t, took >= ingress.YieldAfter && took <= ingress.YieldAfter+2*time.Second,
			"a new leader gives the ports up after %s", took)
	})
}

// TestWaitingServiceHasAnEvent: while there are Ingresses, an event of each Service that waits names one of them, once.
func TestWaitingServiceHasAnEvent(t *testing.T) {
	run(t, func(b bed) {
		ing := web()
		ing.Spec.DefaultBackend = nil // of which nothing is to be said
		b.create(ing)
		b.settle()
		testenv.Equal(t, b.said(), "", "events:")
		b.other(at(balancer("nginx", 80, 443, 8443), "", servicelb.ReasonPortInUse))
		b.other(balancer("elsewhere", 8080))
		b.settle()
		testenv.Equal(t, b.said(), "Warning PortInUse kube-system/ingress has 80/TCP, 443/TCP while there are Ingresses of its classes, such as "+
			"shop/web. It gives them up 30s after the last one has gone or has another class. Until then, give this Service other ports, or "+
			"addresses of a pool", "the events are")
		second := ing.DeepCopy()
		second.Name = "zoo"
		b.create(second)
		b.settle()
		testenv.Equal(t, b.said(), "", "with another Ingress, the events are")
	})
}

// TestPortsGoToAnotherControllerAndComeBack: ingress-nginx is installed, its class takes the Ingresses, and its Service
// gets the addresses of both families from the real load balancer. When it has gone, ours gets them again.
func TestPortsGoToAnotherControllerAndComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := bed{t, fake.NewClientset(), record.NewFakeRecorder(1000)}
		b.client.PrependReactor("create", "services", func(a clienttesting.Action) (bool, runtime.Object, error) { // as an API server
			svc := a.(clienttesting.CreateAction).GetObject().(*corev1.Service)
			svc.CreationTimestamp, svc.Spec.IPFamilies = metav1.Now(), []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
			return false, nil, nil
		})
		factory := informers.NewSharedInformerFactory(b.client, 0)
		c := testenv.Must(ingress.New(ingress.Options{Client: b.client, Informers: factory, Recorder: b.events}))(t)
		lb := testenv.Must(servicelb.New(servicelb.Options{Client: b.client, Informers: factory, Recorder: b.events}))(t)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		factory.Start(ctx.Done())
		running.Go(func() { testenv.Check(t, c.Run(ctx)) })
		running.Go(func() { testenv.Check(t, lb.Run(ctx)) })
		testenv.Must(b.client.CoreV1().Nodes().Create(ctx, node("a", "http=10054,https=10055", true, "192.0.2.1", "2001:db8::1"), metav1.CreateOptions{}))(t)

		ing := web()
		ing.Spec.IngressClassName = ptr.To("nginx")
		b.create(ing)
		b.settle()
		const both = "192.0.2.1 2001:db8::1"
		testenv.Equal(t, b.addresses(metav1.NamespaceSystem, table.Service), both, "our Service has")
		b.other(balancer("nginx", 80, 443))
		b.settle()
		testenv.Equal(t, b.addresses("other", "nginx"), "", "while there is an Ingress of ours, the other has")
		class := &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: "nginx"}, Spec: networkingv1.IngressClassSpec{Controller: "k8s.io/ingress-nginx"}}
		testenv.Must(b.client.NetworkingV1().IngressClasses().Create(ctx, class, metav1.CreateOptions{}))(t)
		time.Sleep(ingress.YieldAfter + 3*time.Second) // fake time
		synctest.Wait()
		testenv.Equal(t, b.addresses("other", "nginx"), both, "without an Ingress of ours, the other has")

		again := web()
		again.Name, again.Spec.IngressClassName = "own", ptr.To(compile.Class)
		b.create(again)
		b.settle()
		testenv.Equal(t, b.addresses(metav1.NamespaceSystem, table.Service), "", "beside the other, our Service has")
		testenv.Equal(t, b.addresses("other", "nginx"), both, "the other keeps")
		testenv.NoError(t, b.client.CoreV1().Services("other").Delete(ctx, "nginx", metav1.DeleteOptions{}))
		b.settle()
		testenv.Equal(t, b.addresses(metav1.NamespaceSystem, table.Service), both, "when the other has gone, our Service has")
		cancel()
		running.Wait()
		factory.Shutdown()
	})
}

// addresses are those in a Service's status.
func (b bed) addresses(namespace, name string) string {
	svc := testenv.Must(b.client.CoreV1().Services(namespace).Get(b.Context(), name, metav1.GetOptions{}))(b)
	var out []string
	for _, in := range svc.Status.LoadBalancer.Ingress {
		out = append(out, in.IP)
	}
	return strings.Join(out, " ")
}
