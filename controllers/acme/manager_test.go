// SPDX-License-Identifier: Apache-2.0

package acme_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/controllers/acme"
	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// bed is a cluster with an authority, in fake time.
type bed struct {
	*testing.T
	client *fake.Clientset
	ca     *authority
	events *record.FakeRecorder
	built  time.Time

	mu           sync.Mutex
	orders       []compile.Order
	unresponsive map[string]bool // nodes and hosts for which no challenge is answered
	full         atomic.Bool     // the store takes no writes
}

// run tests a bed with two nodes.
func run(t *testing.T, test func(b *bed)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bed{T: t, client: newClient(), ca: newAuthority(), events: record.NewFakeRecorder(10_000), unresponsive: map[string]bool{}}
		b.ca.thumbprint = b.thumbprint
		b.ca.visit = func(host, path string) (string, error) {
			_, text := b.proxy("192.0.2.1:10054", host, path)
			return text, nil
		}
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "ingress-a", Labels: map[string]string{discoveryv1.LabelServiceName: table.Service}},
			Ports:      []discoveryv1.EndpointPort{{Name: ptr.To(table.HTTPS), Port: ptr.To[int32](10055)}, {Name: ptr.To(table.HTTP), Port: ptr.To[int32](10054)}},
		}
		for i, ready := range []bool{true, true, false} {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{fmt.Sprintf("192.0.2.%d", i+1)}, NodeName: ptr.To(fmt.Sprintf("n%d", i+1)), Conditions: discoveryv1.EndpointConditions{Ready: &ready},
			})
		}
		testenv.Must(b.client.DiscoveryV1().EndpointSlices(metav1.NamespaceSystem).Create(t.Context(), slice, metav1.CreateOptions{}))(t)
		b.client.PrependReactor("*", "secrets", func(a clienttesting.Action) (bool, runtime.Object, error) {
			if b.full.Load() && a.GetVerb() != "get" && a.GetVerb() != "list" && a.GetVerb() != "watch" {
				return true, nil, apierrors.NewInternalError(fmt.Errorf("etcdserver: mvcc: database space exceeded"))
			}
			return false, nil, nil
		})
		test(b)
	})
}

// newClient is a store in memory. It keeps no managed fields, which would take most of the time.
func newClient() *fake.Clientset {
	tracker := clienttesting.NewObjectTracker(scheme.Scheme, scheme.Codecs.UniversalDecoder())
	c := &fake.Clientset{}
	c.AddReactor("*", "*", clienttesting.ObjectReaction(tracker))
	c.AddWatchReactor("*", func(a clienttesting.Action) (bool, watch.Interface, error) {
		w, err := tracker.Watch(a.GetResource(), a.GetNamespace())
		return true, w, err
	})
	return c
}

// thumbprint is that of the account in the store.
func (b *bed) thumbprint() string {
	s := b.secret("kube-system", "ingress-acme")
	if s == nil {
		return ""
	}
	return string(s.Data[compile.ThumbprintKey])
}

// proxy is what a node's proxy answers. The third node, which is not ready, answers nothing.
func (b *bed) proxy(address, host, path string) (int, string) {
	thumbprint := b.thumbprint()
	b.mu.Lock()
	defer b.mu.Unlock()
	token, ok := strings.CutPrefix(path, table.ChallengesPath)
	known := slices.ContainsFunc(b.orders, func(o compile.Order) bool { return slices.Contains(o.Hosts, host) })
	if !ok || !known || b.unresponsive[address] || b.unresponsive[host] {
		return http.StatusNotFound, ""
	}
	return http.StatusOK, token + "." + thumbprint
}

func (b *bed) dial(_ context.Context, _, address string) (net.Conn, error) {
	if address == "192.0.2.3:10054" {
		return nil, errUnreachable
	}
	here, there := net.Pipe()
	go func() {
		defer there.Close()
		in := bufio.NewReader(there)
		for {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			status, text := b.proxy(address, req.Host, req.URL.Path)
			_, err = fmt.Fprintf(there, "HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%s", status, len(text), text)
			if err != nil {
				return
			}
		}
	}()
	return here, nil
}

// lead has a manager work as a leader's does; what it returns ends the term.
func (b *bed) lead() (end func()) {
	ctx, cancel := context.WithCancel(b.Context())
	return b.leadUntil(ctx, cancel, acme.Options{Email: "a@example.org", Directory: directoryURL, Built: b.built})
}

func (b *bed) leadUntil(ctx context.Context, cancel func(), o acme.Options) (end func()) {
	factory := informers.NewSharedInformerFactory(b.client, 0)
	o.Client, o.Secrets, o.Slices = b.client, factory.Core().V1().Secrets().Lister(), factory.Discovery().V1().EndpointSlices().Lister()
	o.Recorder, o.Dial, o.Transport = b.events, b.dial, b.ca
	o.Logger = slog.New(slog.DiscardHandler)
	m := acme.New(o)
	want := func(any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		m.Want(slices.Clone(b.orders))
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: want, UpdateFunc: func(_, s any) { want(s) }, DeleteFunc: want}
	testenv.Must(factory.Core().V1().Secrets().Informer().AddEventHandler(handler))(b)
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	synctest.Wait() // watches have begun: the fake store does not send what was between a list and its watch
	want(nil)
	var running sync.WaitGroup
	running.Go(func() { m.Run(ctx) })
	return func() {
		cancel()
		running.Wait()
		factory.Shutdown()
	}
}

// wants sets what Ingresses ask for: "namespace/secret=host,host".
func (b *bed) wants(all ...string) {
	var orders []compile.Order
	for _, text := range all {
		name, hosts, _ := strings.Cut(text, "=")
		namespace, secret, _ := strings.Cut(name, "/")
		orders = append(orders, compile.Order{
			Secret: types.NamespacedName{Namespace: namespace, Name: secret}, Hosts: strings.Split(hosts, ","),
			Ingresses: []*networkingv1.Ingress{{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "web"}}},
		})
	}
	b.mu.Lock()
	b.orders = orders
	b.mu.Unlock()
}

func (b *bed) secret(namespace, name string) *corev1.Secret {
	s, err := b.client.CoreV1().Secrets(namespace).Get(context.Background(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	testenv.NoError(b, err)
	return s
}

// certificate is what a Secret holds, which has to be usable; nil without.
func (b *bed) certificate(namespace, name string) *x509.Certificate {
	s := b.secret(namespace, name)
	if s == nil {
		return nil
	}
	pair, err := tls.X509KeyPair(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey])
	testenv.NoError(b, err, "the Secret %s holds no certificate", name)
	return pair.Leaf
}

// kept are the orders in the store.
func (b *bed) kept() []string {
	all := testenv.Must(
		b.client.CoreV1().Secrets("kube-system").List(b.Context(), metav1.ListOptions{LabelSelector: acme.OrderLabel + "=true"}))(b)
	var out []string
	for _, s := range all.Items {
		out = append(out, s.Annotations[acme.ForAnnotation])
	}
	return out
}

// said are the events since the last call.
func (b *bed) said() string {
	var out []string
	for {
		select {
		case e := <-b.events.Events:
			out = append(out, e)
		default:
			return strings.Join(out, "\n")
		}
	}
}

func (b *bed) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestOrderedCertificateIsStoredInSecret(t *testing.T) {
	run(t, func(b *bed) {
		b.wants("shop/cert=a.example,b.example")
		defer b.lead()()
		b.pass(time.Minute)
		c := b.certificate("shop", "cert")
		if c == nil || !slices.Equal(c.DNSNames, []string{"a.example", "b.example"}) {
			t.Fatalf("the certificate is %v; events: %s", c, b.said())
		}
		if s := b.secret("shop", "cert"); s.Type != corev1.SecretTypeTLS || !acme.IsOwned(s) {
			t.Errorf("the Secret is %v", s)
		}
		testenv.Equal(t, len(b.kept()), 0, "orders are left:")
		if got, want := b.said(), "Normal CertificateIssued the Secret cert has a certificate for a.example, b.example until 2000-03-30"; got != want {
			t.Errorf("events: %s", got)
		}
		s := b.secret("kube-system", "ingress-acme")
		if s.Annotations[acme.AccountAnnotation] != "https://ca.example/account/1" || s.Type != corev1.SecretTypeTLS || len(s.Data[corev1.TLSCertKey]) != 0 {
			t.Errorf("the account is %v", s)
		}
		before := len(b.ca.requests)
		b.pass(50 * 24 * time.Hour)
		testenv.Equal(t, len(b.ca.requests)-before, 0, "requests while nothing is to be done:")
	})
}

// TestCertificatesAreRenewedBeforeExpiry: each certificate is renewed when about a third of its life is left, never
// expires, and not all are renewed together.
func TestCertificatesAreRenewedBeforeExpiry(t *testing.T) {
	const day = 24 * time.Hour
	for life, number := range map[time.Duration]int{90 * day: 20, 6 * day: 3} {
		run(t, func(b *bed) {
			b.ca.life = life
			var names, all []string
			for i := range number {
				names = append(names, fmt.Sprintf("h%d.example", i))
				all = append(all, fmt.Sprintf("shop/c%d=h%d.example", i, i))
			}
			b.wants(all...)
			end := b.lead()
			for range 52 { // a new leader each week
				for range 7 {
					b.pass(day)
					for i := range names {
						c := b.certificate("shop", fmt.Sprintf("c%d", i))
						if c == nil || time.Now().After(c.NotAfter.Add(-life/4)) {
							t.Fatalf("%s: the certificate of %s is %v", time.Now(), names[i], c)
						}
					}
				}
				end()
				end = b.lead()
			}
			end()
			moments := map[time.Time]int{}
			for _, host := range names {
				issued := b.ca.issued[host]
				least, most := int(364*day/(life*2/3))+1, int(364*day/(life*2/3-life/30-life/90))+1
				testenv.True(t, len(issued) >= least && len(issued) <= most,
					"%s: %d certificates, want %d to %d", host, len(issued), least, most)
				for i, c := range issued[1:] {
					left := issued[i].NotAfter.Sub(c.NotBefore.Add(time.Hour))
					testenv.True(t, left <= life/3+life/30+time.Minute && left >= life/3-time.Minute,
						"%s: renewed with %s left of %s", host, left, life)
					moments[c.NotBefore.Truncate(time.Hour)]++
				}
			}
			if most := slices.Max(slices.Collect(maps.Values(moments))); most > 10 {
				t.Errorf("%d of the certificates were renewed within one hour", most)
			}
			testenv.Equal(t, len(b.ca.failures), 0, "hosts had failures:")
		})
	}
}

// TestNextLeaderContinuesInterruptedOrder ends a leader after each request to the authority and each write to the store
// in turn: the next one goes on with the order.
func TestNextLeaderContinuesInterruptedOrder(t *testing.T) {
	for _, what := range []string{"request", "write"} {
		killed := true
		for at := 1; killed; at++ {
			killed = false
			run(t, func(b *bed) {
				b.wants("shop/cert=a.example,b.example")
				ctx, cancel := context.WithCancel(b.Context())
				last := ""
				kill := func(n int, name string) {
					if n == at && ctx.Err() == nil {
						killed, last = true, name
						cancel()
					}
				}
				if what == "request" {
					b.ca.after = kill
				}
				writes, over := 0, false
				b.client.PrependReactor("*", "secrets", func(a clienttesting.Action) (bool, runtime.Object, error) {
					if v := a.GetVerb(); v == "get" || v == "list" || v == "watch" || over {
						return false, nil, nil
					}
					if ctx.Err() != nil { // the fake store knows no contexts
						return true, nil, ctx.Err()
					}
					if writes++; what == "write" { // which still arrives
						kill(writes, a.GetVerb())
					}
					return false, nil, nil
				})
				end := b.leadUntil(ctx, cancel, acme.Options{Email: "a@example.org", Directory: directoryURL})
				b.pass(time.Minute)
				end()
				over = true
				defer b.lead()()
				b.pass(5 * time.Minute)
				if c := b.certificate("shop", "cert"); c == nil {
					t.Fatalf("killed after %s %d (%s): there is no certificate; events: %s", what, at, last, b.said())
				}
				testenv.Equal(t, len(b.kept()), 0, "killed after %s %d (%s): orders are left:", what, at, last)
				most := 1
				if what == "request" && last == "/order" { // the leader never heard of its order
					most = 2
				}
				testenv.True(t, len(b.ca.orders) <= most, "killed after %s %d (%s): %d orders", what, at, last, len(b.ca.orders))
				if n := len(b.ca.validations["a.example"]); n != 1 || len(b.ca.issued["a.example"]) != 1 || len(b.ca.failures) != 0 {
					t.Errorf("killed after %s %d (%s): %d validations, %d certificates, failures %v", what, at, last, n, len(b.ca.issued["a.example"]), b.ca.failures)
				}
			})
		}
	}
}

// worst is how many of the moments lie within one hour at most.
func worst(at []time.Time) int {
	most := 0
	for i := range at {
		n := 0
		for _, other := range at[i:] {
			if other.Sub(at[i]) < time.Hour {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

// TestFailedValidationsStayBelowLimits: a host that cannot be verified fails less often than authorities allow, also
// when leaders change all the time.
func TestFailedValidationsStayBelowLimits(t *testing.T) {
	for _, term := range []time.Duration{24 * time.Hour, 7 * time.Minute} {
		run(t, func(b *bed) {
			b.wants("shop/cert=a.example", "shop/good=b.example")
			b.ca.refused["a.example"] = &problem{status: 400, kind: "connection", detail: "192.0.2.1: Fetching http://a.example/: Timeout during connect."}
			for began := time.Now(); time.Since(began) < 48*time.Hour; {
				end := b.lead()
				b.pass(term)
				end()
			}
			if n := worst(b.ca.failures["a.example"]); n > 3 || n == 0 {
				t.Errorf("terms of %s: %d failures within an hour", term, n)
			}
			if n := len(b.ca.failures["a.example"]); n < 8 || n > 14 {
				t.Errorf("terms of %s: %d failures in two days", term, n)
			}
			testenv.True(t, b.certificate("shop", "good") != nil, "a host that fails keeps another from its certificate")
			events := b.said()
			if want := "Warning CertificateFailed no certificate for the Secret cert yet: the authority could not verify a.example: 192.0.2.1: Fetching http://a.example/: Timeout during " +
				"connect. What to do: have the DNS name lead to the addresses of the Ingress, and let port 80 in there from the whole internet. It is tried again at 2000-01-01T00:15:0"; !strings.Contains(events, want) {
				t.Errorf("the events are %.1000s", events)
			}
			b.ca.change(func() { delete(b.ca.refused, "a.example") })
			defer b.lead()()
			b.pass(9 * time.Hour)
			testenv.True(t, b.certificate("shop", "cert") != nil, "there is no certificate though the host can be verified now")
		})
	}
}

// TestChangedHostsAreTriedAtOnce: a user who removes the host that fails need not wait.
func TestChangedHostsAreTriedAtOnce(t *testing.T) {
	run(t, func(b *bed) {
		b.wants("shop/cert=a.example,b.example")
		b.ca.refused["a.example"] = &problem{status: 400, kind: "dns", detail: "no such name"}
		end := b.lead()
		b.pass(time.Minute)
		end()
		b.wants("shop/cert=b.example")
		defer b.lead()()
		b.pass(time.Minute)
		if c := b.certificate("shop", "cert"); c == nil || len(c.DNSNames) != 1 {
			t.Errorf("the certificate is %v: %s", c, b.said())
		}
	})
}

func TestAddedHostCausesNewOrder(t *testing.T) {
	run(t, func(b *bed) {
		b.wants("shop/cert=a.example")
		end := b.lead()
		b.pass(time.Minute)
		end()
		b.wants("shop/cert=a.example,b.example")
		end = b.lead()
		b.pass(time.Minute)
		end()
		if c := b.certificate("shop", "cert"); c == nil || len(c.DNSNames) != 2 {
			t.Errorf("the certificate is %v: %s", c, b.said())
		}
		b.wants("shop/cert=a.example")
		defer b.lead()()
		b.pass(time.Minute)
		testenv.Equal(t, len(b.ca.orders), 2, "orders after a host was taken out, which needs none:")
	})
}

// TestNothingIsOrderedWithRefusedAccount: nothing is ordered, events say what to do, and the authority is not asked all
// the time.
func TestNothingIsOrderedWithRefusedAccount(t *testing.T) {
	run(t, func(b *bed) {
		b.wants("shop/one=a.example", "shop/two=b.example")
		b.ca.noAccounts = &problem{status: 400, kind: "invalidContact", detail: "a@example.org: contact email has forbidden domain \"example.org\"."}
		end := b.lead()
		b.pass(24 * time.Hour)
		events := b.said()
		for _, secret := range []string{"one", "two"} {
			if want := "Warning CertificateFailed no certificate for the Secret " + secret + " yet: there is no account with the authority: a@example.org: contact email has forbidden " +
				"domain \"example.org\". What to do: correct --ingress-acme-email on all servers. It is tried again at "; !strings.Contains(events, want) {
				t.Errorf("the events are %s", events)
			}
		}
		if n := b.ca.did("/account"); n > 10 {
			t.Errorf("%d attempts to register within a day", n)
		}
		testenv.False(t, len(b.ca.orders) != 0 || len(b.kept()) != 0, "there are orders without an account")
		b.ca.change(func() { b.ca.noAccounts = nil })
		end()
		defer b.lead()() // a restart with another address
		b.pass(time.Minute)
		if b.certificate("shop", "one") == nil || b.certificate("shop", "two") == nil {
			t.Errorf("there are no certificates: %s", b.said())
		}
	})
}

// TestLostAccountIsRegisteredAgain: an authority that forgot its accounts gets a new one.
func TestLostAccountIsRegisteredAgain(t *testing.T) {
	run(t, func(b *bed) {
		b.wants("shop/one=a.example")
		end := b.lead()
		b.pass(time.Minute)
		end()
		b.wants("shop/one=a.example", "shop/two=b.example")
		b.ca.noOrders, b.ca.account = &problem{status: 400, kind: "accountDoesNotExist", detail: "no such account"}, false
		b.ca.after = func(_ int, path string) {
			if path == "/account" {
				b.ca.change(func() { b.ca.noOrders = nil })
			}
		}
		defer b.lead()()
		b.pass(5 * time.Minute)
		if b.certificate("shop", "two") == nil {
			t.Errorf("there is no certificate: %s", b.said())
		}
	})
}

// TestDeletedAccountSecretIsReplaced: a user who deletes the account's Secret gets another account, without a restart.
func TestDeletedAccountSecretIsReplaced(t *testing.T) {
	run(t, func(b *bed) {
		b.wants("shop/one=a.example")
		defer b.lead()()
		b.pass(time.Minute)
		before := b.thumbprint()
		testenv.NoError(t, b.client.CoreV1().Secrets("kube-system").Delete(t.Context(), "ingress-acme", metav1.DeleteOptions{}))
		b.pass(65 * 24 * time.Hour)
		if n := len(b.ca.issued["a.example"]); n != 2 || b.thumbprint() == before {
			t.Errorf("%d certificates; events: %s", n, b.said())
		}
	})
}

// TestFullDiskCostsNoOrders: a store that takes no writes costs no orders, whenever it fills.
func TestFullDiskCostsNoOrders(t *testing.T) {
	run(t, func(b *bed) {
		b.wants("shop/cert=a.example")
		b.full.Store(true)
		end := b.lead()
		b.pass(24 * time.Hour)
		testenv.Equal(t, len(b.ca.orders), 0, "there is an order that could not be written down:")
		testenv.Contains(t, b.said(), "database space exceeded", "events:")
		b.full.Store(false)
		b.pass(16 * time.Minute)
		end()
		if b.certificate("shop", "cert") == nil {
			t.Errorf("there is no certificate though the store takes writes: %s", b.said())
		}
	})
	for _, path := range []string{"/order", "/authz/0/0", "/order/0/finalize", "/cert/0"} {
		run(t, func(b *bed) {
			b.wants("shop/cert=a.example")
			b.ca.after = func(_ int, at string) {
				if at == path && len(b.ca.requests) < 100 {
					b.full.Store(true)
				}
			}
			defer b.lead()()
			b.pass(24 * time.Hour)
			b.ca.after = nil
			b.full.Store(false)
			b.pass(16 * time.Minute)
			if b.certificate("shop", "cert") == nil {
				t.Errorf("full after %s: there is no certificate: %s", path, b.said())
			}
			if n := len(b.ca.orders); n != 1 || len(b.ca.issued["a.example"]) != 1 {
				t.Errorf("full after %s: %d orders, %d certificates", path, n, len(b.ca.issued["a.example"]))
			}
		})
	}
}

// TestNothingIsOrderedByWrongClock: nothing is ordered by a clock that is wrong, and it goes on by itself when it is
// set.
func TestNothingIsOrderedByWrongClock(t *testing.T) {
	run(t, func(b *bed) {
		b.wants("shop/cert=a.example")
		b.ca.skew = 26 * 365 * 24 * time.Hour
		defer b.lead()()
		b.pass(time.Hour)
		testenv.False(t, len(b.ca.orders) != 0 || b.ca.did("/account") != 0, "something was asked for by a wrong clock")
		testenv.Contains(t, b.said(), "this server's clock shows 2000-01-01T00:00:00Z, and the authority's 2025-12-25T00:00:00Z: nothing is ordered or renewed before it is set (NTP)", "events:")
		b.ca.skew = 59 * time.Minute
		b.pass(16 * time.Minute)
		if b.certificate("shop", "cert") == nil {
			t.Errorf("there is no certificate: %s", b.said())
		}
	})
	run(t, func(b *bed) {
		b.built = time.Now().Add(time.Hour)
		b.wants("shop/cert=a.example")
		defer b.lead()()
		b.pass(30 * time.Minute)
		testenv.True(t, len(b.ca.requests) == 0, "requests by a clock that is before the program: %v", b.ca.requests)
		testenv.Contains(t, b.said(), "this program was built at 2000-01-01T01:00:00Z", "events:")
		b.pass(time.Hour)
		if b.certificate("shop", "cert") == nil {
			t.Errorf("there is no certificate: %s", b.said())
		}
	})
}

// TestForeignSecretsAreNotOverwritten: Secrets that others made are left alone.
func TestForeignSecretsAreNotOverwritten(t *testing.T) {
	run(t, func(b *bed) {
		b.wants("shop/made=a.example", "shop/replaced=b.example", "shop/manager=c.example", "shop/foreign=d.example")
		foreign := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "foreign"}, Type: corev1.SecretTypeTLS}
		testenv.Must(b.client.CoreV1().Secrets("shop").Create(b.Context(), foreign, metav1.CreateOptions{}))(t)
		end := b.lead()
		b.pass(time.Minute)
		end()
		replaced, manager := b.secret("shop", "replaced"), b.secret("shop", "manager")
		replaced.Data = b.secret("shop", "made").Data
		manager.Annotations["cert-manager.io/certificate-name"] = "x"
		for _, s := range []*corev1.Secret{replaced, manager} {
			testenv.Must(b.client.CoreV1().Secrets("shop").Update(b.Context(), s, metav1.UpdateOptions{}))(t)
		}
		defer b.lead()()
		b.pass(80 * 24 * time.Hour)
		for host, want := range map[string]int{"a.example": 2, "b.example": 1, "c.example": 1, "d.example": 0} {
			testenv.Equal(t, len(b.ca.issued[host]), want, "%s: certificates:", host)
		}
	})
}

// TestRateLimitedOrderIsDelayed: when the authority wants no more orders, no other is begun for a while, and this one
// not before it may.
func TestRateLimitedOrderIsDelayed(t *testing.T) {
	run(t, func(b *bed) {
		var all []string
		for i := range 50 {
			all = append(all, fmt.Sprintf("shop/c%d=h%d.example", i, i))
		}
		b.wants(all...)
		b.ca.noOrders = &problem{status: 429, kind: "rateLimited", detail: "too many new orders recently", retryAfter: 2 * time.Hour}
		defer b.lead()()
		b.pass(time.Hour)
		if n := b.ca.did("/order"); n > acme.Most*7 {
			t.Errorf("%d orders were asked for within an hour of limits", n)
		}
		testenv.Contains(t, b.said(), "the authority's limits are reached: too many new orders recently. It is tried again at 2000-01-01T02:00:0", "events:")
		b.ca.change(func() { b.ca.noOrders = nil })
		b.pass(6 * time.Hour)
		testenv.Equal(t, len(b.ca.issued), 50, "certificates after the limits:")
	})
}

// TestOneNamespaceTakesNotAllTurns: orders of a namespace that fail again and again keep no other namespace's from
// being begun.
func TestOneNamespaceTakesNotAllTurns(t *testing.T) {
	run(t, func(b *bed) {
		var all []string
		for i := range 60 {
			host := fmt.Sprintf("h%d.example", i)
			all = append(all, fmt.Sprintf("evil/c%d=%s", i, host))
			b.unresponsive[host] = true // so that each attempt takes receiveTimeout
		}
		b.wants(append(all, "shop/cert=shop.example")...)
		defer b.lead()()
		b.pass(time.Minute)
		testenv.True(t, b.certificate("shop", "cert") != nil, "there is no certificate after a minute")
	})
}

// TestOneNamespaceTakesNotAllOrders: of the orders that an authority allows in three hours a namespace asks for half at
// most, so that others' are served at once. The rest of its own follows.
func TestOneNamespaceTakesNotAllOrders(t *testing.T) {
	run(t, func(b *bed) {
		const most = 150
		var all []string
		for i := range 2 * most {
			all = append(all, fmt.Sprintf("many/c%d=h%d.example", i, i))
		}
		b.wants(all...)
		defer b.lead()()
		b.pass(time.Hour)
		if n := b.ca.did("/order"); n < most || n > most+most/3+acme.Most {
			t.Errorf("%d orders of one namespace were asked for within an hour", n)
		}
		b.wants(append(all, "shop/cert=shop.example")...)
		b.pass(3 * time.Minute) // the manager hears of it by the next Secret
		testenv.True(t, b.certificate("shop", "cert") != nil, "another namespace has no certificate after three minutes")
		b.pass(3 * time.Hour)
		testenv.Equal(t, len(b.ca.issued), 2*most+1, "certificates at the end:")
	})
}

// TestOrderWaitsForNodesChallengeAnswers: nothing is ordered before each node that is ready answers challenges of the
// host.
func TestOrderWaitsForNodesChallengeAnswers(t *testing.T) {
	run(t, func(b *bed) {
		b.unresponsive["192.0.2.2:10054"] = true
		b.wants("shop/cert=a.example")
		defer b.lead()()
		b.pass(time.Hour)
		testenv.Equal(t, len(b.ca.orders), 0, "there is an order though a node does not answer:")
		testenv.Contains(t, b.said(), "not all nodes answer challenges yet, of which the authority may ask any: the node n2 at 192.0.2.2:10054: it answers 404", "events:")
		b.mu.Lock()
		delete(b.unresponsive, "192.0.2.2:10054")
		b.mu.Unlock()
		b.pass(16 * time.Minute)
		if b.certificate("shop", "cert") == nil {
			t.Errorf("there is no certificate: %s", b.said())
		}
	})
}

// TestUnwantedOrdersAreForgottenButFailuresCount: of orders that no Ingress wants only the failures are kept.
func TestUnwantedOrdersAreForgottenButFailuresCount(t *testing.T) {
	run(t, func(b *bed) {
		b.wants("shop/cert=a.example")
		b.ca.refused["a.example"] = &problem{status: 400, kind: "dns", detail: "no such name"}
		end := b.lead()
		b.pass(time.Minute)
		end()
		b.wants()
		end = b.lead()
		b.pass(time.Minute)
		end()
		testenv.Equal(t, len(b.kept()), 1, "orders are kept after a failure a minute ago:")
		b.pass(15 * time.Minute)
		defer b.lead()()
		b.pass(time.Minute)
		testenv.Equal(t, len(b.kept()), 0, "orders are kept that nothing asks for:")
	})
}
