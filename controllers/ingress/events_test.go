// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"

	"github.com/coracle-k8s/coracle/controllers/ingress"
	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// clocked is a recorder to which no two events happen in the same nanosecond of fake time: it is a part of their names.
type clocked struct{ record.EventRecorder }

func (c clocked) Event(of runtime.Object, kind, reason, message string) {
	time.Sleep(time.Nanosecond) // fake time
	c.EventRecorder.Event(of, kind, reason, message)
}

func (c clocked) Eventf(of runtime.Object, kind, reason, format string, args ...any) {
	c.Event(of, kind, reason, fmt.Sprintf(format, args...))
}

// term runs a controller for one term of a leader, with a recorder that writes events into the API.
func term(t *testing.T, client *fake.Clientset, test func(b bed)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	events := record.NewBroadcaster(record.WithContext(ctx), record.WithCorrelatorOptions(ingress.Correlation))
	events.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: client.CoreV1().Events("")})
	factory := informers.NewSharedInformerFactory(client, 0)
	recorder := clocked{events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: ingress.Component})}
	c := testenv.Must(ingress.New(ingress.Options{Client: client, Informers: factory, Recorder: recorder}))(t)
	var running sync.WaitGroup
	factory.Start(ctx.Done())
	running.Go(func() { testenv.Check(t, c.Run(ctx)) })
	b := bed{T: t, client: client}
	b.settle()
	test(b)
	cancel()
	running.Wait()
	factory.Shutdown()
	events.Shutdown()
	synctest.Wait()
}

// recorded lists the API's events as "Kind/name Reason ×count".
func (b bed) recorded() string {
	list := testenv.Must(b.client.CoreV1().Events("").List(b.Context(), metav1.ListOptions{}))(b)
	var out []string
	for _, e := range list.Items {
		out = append(out, fmt.Sprintf("%s/%s %s ×%d", e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Count))
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

func (b bed) writes() (n int) {
	for _, a := range b.client.Actions() {
		if a.GetResource().Resource == "events" && a.GetVerb() != "list" {
			n++
		}
	}
	return n
}

// TestNextLeaderRepeatsNoEvent: of an Ingress, the ConfigMap, the Service and the default certificate. A problem that
// comes back is recorded again, also in the later term.
func TestNextLeaderRepeatsNoEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		const want = "ConfigMap/ingress Ignored ×1; Ingress/web BadBackend ×1; Secret/ingress-default BadCertificate ×1; Service/ingress PortInUse ×1"
		term(t, client, func(b bed) {
			testenv.Must(client.CoreV1().Nodes().Create(b.Context(), node("b", "http=10054,https=10055,busy=80", true, "192.0.2.2"), metav1.CreateOptions{}))(b)
			testenv.Must(client.CoreV1().ConfigMaps(compile.Defaults.Namespace).Create(b.Context(), &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Namespace: compile.Defaults.Namespace, Name: compile.Defaults.Name}, Data: map[string]string{"worker-processes": "4"},
			}, metav1.CreateOptions{}))(b)
			testenv.Must(client.CoreV1().Secrets(compile.DefaultCertificate.Namespace).Create(b.Context(), &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Namespace: compile.DefaultCertificate.Namespace, Name: compile.DefaultCertificate.Name}, Type: corev1.SecretTypeTLS,
			}, metav1.CreateOptions{}))(b)
			b.create(web())
			b.settle()
			testenv.Equal(t, b.recorded(), want, "events of the first term:")
		})
		before := bed{T: t, client: client}.writes()
		term(t, client, func(b bed) {
			testenv.Equal(t, b.recorded(), want, "events after the next term began:")
			testenv.Equal(t, b.writes(), before, "writes of events:")
			services := client.CoreV1().Services("shop")
			svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
			testenv.Must(services.Create(b.Context(), svc, metav1.CreateOptions{}))(b)
			b.settle()
			testenv.NoError(b, services.Delete(b.Context(), "web", metav1.DeleteOptions{}))
			b.settle()
			testenv.True(t, strings.Contains(b.recorded(), "Ingress/web BadBackend ×1; Ingress/web BadBackend ×1"), "the problem is back: %s", b.recorded())
		})
	})
}

// TestEventsWaitUntilTheEarlierOnesAreRead: while the API does not list events, none is recorded, and all else is done.
func TestEventsWaitUntilTheEarlierOnesAreRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, fails := fake.NewClientset(), true
		client.PrependReactor("list", "events", func(clienttesting.Action) (bool, runtime.Object, error) {
			return fails, nil, errors.New("the API does not answer")
		})
		bed{T: t, client: client}.create(web())
		term(t, client, func(b bed) {
			testenv.True(t, b.service() != nil, "the Service waits for events")
			testenv.Equal(t, b.writes(), 0, "events written:")
			fails = false
			time.Sleep(2 * ingress.Retry) // fake time
			synctest.Wait()
			testenv.Equal(t, b.recorded(), "Ingress/web BadBackend ×1", "events:")
		})
	})
}

// TestManyFindingsAreEachAnEvent: upstream's recorder joins ten that are similar into one, of which the next term would
// not know the others.
func TestManyFindingsAreEachAnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		ing := web()
		ing.Annotations = map[string]string{}
		for i := range 18 {
			ing.Annotations[fmt.Sprintf("nginx.ingress.kubernetes.io/no-such-%d", i)] = "1"
		}
		writes := 0
		for range 2 {
			term(t, client, func(b bed) {
				if writes == 0 {
					b.create(ing)
					b.settle()
					writes = b.writes()
					testenv.Equal(t, strings.Count(b.recorded(), "Unsupported ×1"), 18, "events of annotations:")
				}
				testenv.Equal(t, b.writes(), writes, "writes of events:")
			})
		}
	})
}

// TestEndOfACertificateIsAnEvent: days before and at its end, without a change of an object.
func TestEndOfACertificateIsAnEvent(t *testing.T) {
	run(t, func(b bed) {
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Type: corev1.SecretTypeTLS,
			Data: testenv.Must(ingress.NewDefault(time.Now()))(t)}
		testenv.Must(b.client.CoreV1().Secrets("shop").Create(b.Context(), secret, metav1.CreateOptions{}))(b)
		ing := web()
		ing.Spec.DefaultBackend = nil // of which nothing is to be said
		ing.Spec.TLS = []networkingv1.IngressTLS{{Hosts: []string{"ingress.local"}, SecretName: "web"}}
		b.create(ing)
		const day = 24 * time.Hour
		for _, step := range []struct {
			after time.Duration
			want  string
		}{
			{10*365*day - 11*day, ""},
			{day + time.Hour, "CertificateExpiring the certificate in the Secret web ends at 2009-12-29"},
			{9 * day, ""},
			{day, "CertificateExpired the certificate in the Secret web has ended at 2009-12-29"},
			{365 * day, ""},
		} {
			time.Sleep(step.after) // fake time
			b.settle()
			said := b.said()
			testenv.True(t, (step.want == "") == (said == "") && strings.Contains(said, step.want), "at %s: %q, want %q", time.Now(), said, step.want)
		}
	})
}

// TestHandWrittenEndpointsAreJudged: endpoints to which the proxies do not connect are named. Those that upstream's
// controller writes are not looked at.
func TestHandWrittenEndpointsAreJudged(t *testing.T) {
	run(t, func(b bed) {
		testenv.Must(b.client.CoreV1().Nodes().Create(b.Context(), node("a", "", true, "192.0.2.1"), metav1.CreateOptions{}))(b)
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
		testenv.Must(b.client.CoreV1().Services("shop").Create(b.Context(), svc, metav1.CreateOptions{}))(b)
		b.create(web())
		b.settle()
		testenv.Equal(t, b.said(), "", "without endpoints:")
		for _, c := range []struct {
			manager, address string
			port             int32
			bad              bool
		}{
			{"me", "192.0.2.1", 80, false}, {"me", "192.0.2.1", 10250, true}, {"me", "10.43.0.7", 80, true}, {"", "203.0.113.5", 6443, false},
			{"", "10.43.0.8", 443, true}, {"endpointslice-controller.k8s.io", "10.43.0.9", 80, false}, {"me", "10.42.0.7", 80, false},
		} {
			slice := &discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "hand", Labels: map[string]string{discoveryv1.LabelServiceName: "web", discoveryv1.LabelManagedBy: c.manager}},
				Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{c.address}}}, Ports: []discoveryv1.EndpointPort{{Port: &c.port}},
			}
			slices := b.client.DiscoveryV1().EndpointSlices("shop")
			testenv.Must(slices.Create(b.Context(), slice, metav1.CreateOptions{}))(b)
			b.settle()
			said := b.said()
			testenv.True(t, c.bad == strings.Contains(said, "Unreachable the Service web has endpoints at "+c.address) && c.bad == (said != ""),
				"%+v: %q", c, said)
			testenv.NoError(b, slices.Delete(b.Context(), "hand", metav1.DeleteOptions{}))
			b.settle()
		}
	})
}

// TestAuthenticationServerBehindThisIngressIsAnEvent: while clients reach the ingress at addresses of nodes.
func TestAuthenticationServerBehindThisIngressIsAnEvent(t *testing.T) {
	run(t, func(b bed) {
		testenv.Must(b.client.CoreV1().Nodes().Create(b.Context(), node("a", "", true, "192.0.2.1"), metav1.CreateOptions{}))(b)
		ing := web()
		ing.Spec.DefaultBackend = nil
		ing.Spec.Rules = []networkingv1.IngressRule{{Host: "auth.example", IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{
			Paths: []networkingv1.HTTPIngressPath{{Path: "/", Backend: *web().Spec.DefaultBackend}},
		}}}}
		ing.Annotations = map[string]string{"nginx.ingress.kubernetes.io/auth-url": "https://auth.example/check"}
		b.create(ing)
		b.settle()
		testenv.False(t, strings.Contains(b.said(), "Unreachable"), "the ingress has no address yet")
		svc := b.service()
		svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
		testenv.Must(b.client.CoreV1().Services(svc.Namespace).UpdateStatus(b.Context(), svc, metav1.UpdateOptions{}))(b)
		b.settle()
		said := b.said()
		testenv.True(t, strings.Contains(said, "Unreachable this ingress serves the host auth.example, at addresses of nodes"), "events: %q", said)
	})
}

// TestWarningsOfGatewaysAreKnown: of a kind that the scheme does not have, and of another object with the same name.
func TestWarningsOfGatewaysAreKnown(t *testing.T) {
	of := corev1.ObjectReference{Kind: "Gateway", Namespace: "shop", Name: "web", UID: "1"}
	client := fake.NewClientset(&corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web.1"}, InvolvedObject: of, Reason: "PortInUse", Message: "a"})
	events := record.NewFakeRecorder(10)
	w := ingress.NewWarnings(client, events, "gateway")
	round := func(uid types.UID, messages ...string) (n int) {
		ref := of
		ref.UID = uid
		for _, m := range messages {
			w.Add(&ref, "PortInUse", "%s", m)
		}
		testenv.NoError(t, testenv.Err(w.End(t.Context())))
		for n = len(events.Events); len(events.Events) > 0; {
			<-events.Events
		}
		return n
	}
	testenv.Equal(t, round("1", "a", "b", "b"), 1, "events of the first round:")
	testenv.Equal(t, round("1", "a", "b"), 0, "events of the same problems:")
	testenv.Equal(t, round("2", "a"), 1, "events of an object that was made again:")
	testenv.Equal(t, round("1", "a"), 1, "events of a problem that came back:")
}

// TestEventsOfATenantDelayNoOthers: of a tenant's 5,000 problems some are recorded in each round, and in the first one
// also that of another namespace, which comes last. Each is recorded once.
func TestEventsOfATenantDelayNoOthers(t *testing.T) {
	const many = 5000
	events := record.NewFakeRecorder(2 * many)
	w := ingress.NewWarnings(fake.NewClientset(), events, "ingress")
	all := map[string]int{}
	round := func() (again time.Duration, texts []string) {
		for i := range many {
			w.Add(&corev1.ObjectReference{Kind: "Ingress", Namespace: "evil", Name: "web", UID: "1"}, "Ignored", "problem %d", i)
		}
		w.Add(&corev1.ObjectReference{Kind: "Ingress", Namespace: "good", Name: "web", UID: "2"}, "Ignored", "of good")
		again, err := w.End(t.Context())
		testenv.NoError(t, err)
		for len(events.Events) > 0 {
			text := <-events.Events
			all[text]++
			texts = append(texts, text)
		}
		return again, texts
	}
	again, texts := round()
	testenv.True(t, again > 0 && len(texts) < 100, "the first round records %d events, and the next is after %s", len(texts), again)
	testenv.Equal(t, all["Warning Ignored of good"], 1, "of the other namespace the first round records")
	for again > 0 && len(all) <= many {
		before := len(all)
		again, texts = round()
		testenv.Equal(t, len(all)-before, len(texts), "of the round's events have not been recorded before:")
	}
	testenv.Equal(t, len(all), many+1, "events that are recorded in the end:")
}
