// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestEndpointsFollowReadyServers(t *testing.T) {
	client := fake.NewClientset()
	now := time.Now()
	var servers, unready []netip.AddrPort
	r := &endpointReconciler{client: client, servers: func() ServersOfService {
		return ServersOfService{Ready: slices.Clone(servers), Unready: slices.Clone(unready)}
	}, now: func() time.Time { return now }}
	ports := []corev1.EndpointPort{{Name: "https", Port: 6443, Protocol: corev1.ProtocolTCP}}
	are := func(at ...string) {
		servers = nil
		for _, a := range at {
			servers = append(servers, netip.MustParseAddrPort(a))
		}
	}
	reconcile := func(wantReads, wantWrites int, want ...string) {
		t.Helper()
		client.ClearActions()
		testenv.NoError(t, r.ReconcileEndpoints("kubernetes", net.ParseIP("192.0.2.9"), ports, true))
		reads, writes := 0, 0
		for _, a := range client.Actions() {
			switch a.GetVerb() {
			case "get", "list":
				reads++
			default:
				writes++
			}
		}
		if reads != wantReads || writes != wantWrites {
			t.Errorf("%d reads, %d writes, want %d, %d: %v", reads, writes, wantReads, wantWrites, client.Actions())
		}
		if got := published(t, client); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("published are\n%q, want\n%q", got, want)
		}
	}

	are("192.0.2.1:0")
	reconcile(3, 2, "endpoints 192.0.2.1:6443", "kubernetes IPv4 192.0.2.1:6443")
	reconcile(0, 0, "endpoints 192.0.2.1:6443", "kubernetes IPv4 192.0.2.1:6443")
	now = now.Add(endpointCheck)
	reconcile(2, 0, "endpoints 192.0.2.1:6443", "kubernetes IPv4 192.0.2.1:6443")
	are("192.0.2.3:6443", "192.0.2.1:6443", "192.0.2.3:6443")
	both := []string{"endpoints 192.0.2.1:6443 192.0.2.3:6443", "kubernetes IPv4 192.0.2.1:6443 192.0.2.3:6443"}
	reconcile(3, 2, both...)
	servers = nil // another server knows them
	reconcile(0, 0, both...)
	are("192.0.2.3:6443", "192.0.2.1:6443")
	reconcile(3, 0, both...) // this one leads again, and others may have changed something
	are("192.0.2.3:6443", "192.0.2.1:6443", "192.0.2.4:7443", "[2001:db8::1]:6443")
	reconcile(5, 3, "endpoints 192.0.2.1:6443 192.0.2.3:6443 192.0.2.4:7443",
		"kubernetes IPv4 192.0.2.1:6443 192.0.2.3:6443", "kubernetes-ipv4-7443 IPv4 192.0.2.4:7443", "kubernetes-ipv6-6443 IPv6 [2001:db8::1]:6443")
	are("192.0.2.4:7443")
	reconcile(3, 4, "endpoints 192.0.2.4:7443", "kubernetes IPv4 192.0.2.4:7443")
	are("[2001:db8::1]:6443")
	reconcile(3, 3, "endpoints [2001:db8::1]:6443", "kubernetes IPv6 [2001:db8::1]:6443")

	// Servers that are not heard are known, and nothing is sent to them.
	unready = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.5:6443"), netip.MustParseAddrPort("192.0.2.3:0"), netip.MustParseAddrPort("[2001:db8::1]:6443")}
	reconcile(4, 1, "endpoints [2001:db8::1]:6443", "kubernetes IPv6 [2001:db8::1]:6443", "kubernetes-ipv4-6443 IPv4 192.0.2.3:6443? 192.0.2.5:6443?")
	reconcile(0, 0, "endpoints [2001:db8::1]:6443", "kubernetes IPv6 [2001:db8::1]:6443", "kubernetes-ipv4-6443 IPv4 192.0.2.3:6443? 192.0.2.5:6443?")
	are("192.0.2.5:6443", "[2001:db8::1]:6443")
	reconcile(4, 5, "endpoints 192.0.2.5:6443 192.0.2.3:6443?", "kubernetes IPv4 192.0.2.5:6443 192.0.2.3:6443?", "kubernetes-ipv6-6443 IPv6 [2001:db8::1]:6443")
	servers = nil
	reconcile(0, 0, "endpoints 192.0.2.5:6443 192.0.2.3:6443?", "kubernetes IPv4 192.0.2.5:6443 192.0.2.3:6443?", "kubernetes-ipv6-6443 IPv6 [2001:db8::1]:6443")
	are("192.0.2.5:6443")
	unready = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.6:7443")}
	reconcile(4, 4, "endpoints 192.0.2.5:6443 192.0.2.6:7443?", "kubernetes IPv4 192.0.2.5:6443", "kubernetes-ipv4-7443 IPv4 192.0.2.6:7443?")
	unready = nil // it is no member any more
	reconcile(3, 2, "endpoints 192.0.2.5:6443", "kubernetes IPv4 192.0.2.5:6443")

	r.StopReconciling()
	client.ClearActions()
	if err := r.ReconcileEndpoints("kubernetes", nil, ports, true); err != nil || len(client.Actions()) != 0 {
		t.Errorf("after the end: %v, %v", err, client.Actions())
	}
}

// TestEndpointsAreReconciledAtFixedMoments: called as upstream calls it, the reconciler asks for the servers at the
// moments of endpointInterval, and at no others, once it has found to them.
func TestEndpointsAreReconciledAtFixedMoments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, late := 0, 0
		r := alignedReconciler{&endpointReconciler{servers: func() ServersOfService {
			if asked++; timers.Until(endpointInterval) != endpointInterval {
				late++
			}
			return ServersOfService{}
		}}}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second+endpointInterval/4)
		defer cancel()
		wait.NonSlidingUntilWithContext(ctx, func(context.Context) {
			testenv.Check(t, r.ReconcileEndpoints("kubernetes", nil, nil, false))
		}, endpointInterval/2)
		if want := int(10 * time.Second / endpointInterval); asked < want || asked > want+3 || late > 2 {
			t.Errorf("asked %d times, %d of them between two moments, want %d and the first two at most", asked, late, want)
		}
	})
}

// TestEndpointSlicesWithChangedLabelsAreRemoved: a slice of which a user has changed the labels, or that is a
// user's own, is found and removed as the others are. A server that is gone would be named for ever.
func TestEndpointSlicesWithChangedLabelsAreRemoved(t *testing.T) {
	second := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes-ipv4-7443"}, AddressType: discoveryv1.AddressTypeIPv4}
	second.Labels = map[string]string{"mine": "yes"}
	client := fake.NewClientset(second)
	now := time.Now()
	servers := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:6443"), netip.MustParseAddrPort("192.0.2.4:7443")}
	r := &endpointReconciler{client: client, servers: func() ServersOfService { return ServersOfService{Ready: servers} }, now: func() time.Time { return now }}
	reconcile := func(want ...string) {
		t.Helper()
		testenv.NoError(t,
			r.ReconcileEndpoints("kubernetes", nil, []corev1.EndpointPort{{Name: "https", Port: 6443, Protocol: corev1.ProtocolTCP}}, true))
		testenv.EqualSlices(t, published(t, client), want, "published are")
	}
	both := []string{"endpoints 192.0.2.1:6443 192.0.2.4:7443", "kubernetes IPv4 192.0.2.1:6443", "kubernetes-ipv4-7443 IPv4 192.0.2.4:7443"}
	reconcile(both...)
	got, err := client.DiscoveryV1().EndpointSlices("default").Get(t.Context(), second.Name, metav1.GetOptions{})
	testenv.Require(t, err == nil && got.Labels["mine"] == "yes", "%v, %v", got, err)
	got.Labels = nil
	testenv.Must(client.DiscoveryV1().EndpointSlices("default").Update(t.Context(), got, metav1.UpdateOptions{}))(t)
	now = now.Add(endpointCheck)
	reconcile(both...)
	servers = servers[:1]
	reconcile("endpoints 192.0.2.1:6443", "kubernetes IPv4 192.0.2.1:6443")
}

// TestServersOfATermThatIsOver: what a server took for the cluster's servers when it led is not written in a later
// term. One that was paused has heard of no server when it wakes.
func TestServersOfATermThatIsOver(t *testing.T) {
	f := newFixture(t)
	o := f.options(t)
	o.Fence = f.store
	var mu sync.Mutex
	var now ServersOfService
	asked := 0
	o.EndpointAddresses = func() ServersOfService {
		mu.Lock()
		defer mu.Unlock()
		asked++
		return now
	}
	is := func(term uint64, at ...string) {
		mu.Lock()
		defer mu.Unlock()
		asked, now = 0, ServersOfService{Mark: func(ctx context.Context) context.Context { return raftstore.WithTerm(ctx, term) }}
		for _, a := range at {
			now.Ready = append(now.Ready, netip.MustParseAddrPort(a))
		}
	}
	term := f.store.Term()
	is(term, "192.0.2.10:6443", "192.0.2.11:6443")
	kube := client(t, f.start(t, o).LoopbackConfig())
	become := func(what string, done func() bool) {
		t.Helper()
		testenv.Until(t, 2*time.Minute, what, done)
	}
	are := func(want ...string) func() bool {
		return func() bool { return slices.Equal(publishedSoFar(t, kube), want) }
	}
	both := []string{"endpoints 192.0.2.10:6443 192.0.2.11:6443", "kubernetes IPv4 192.0.2.10:6443 192.0.2.11:6443"}
	become("both servers are published", are(both...))

	is(term-1, "192.0.2.10:6443")
	become("the list of an earlier term was tried to be written", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return asked > 3
	})
	testenv.EqualSlices(t, publishedSoFar(t, kube), both, "with the list of an earlier term, published are")
	is(term, "192.0.2.10:6443")
	become("the list of this term is published", are("endpoints 192.0.2.10:6443", "kubernetes IPv4 192.0.2.10:6443"))
}

// publishedSoFar is published, and nothing while the Endpoints are not there.
func publishedSoFar(t *testing.T, client kubernetes.Interface) []string {
	t.Helper()
	if _, err := client.CoreV1().Endpoints("default").Get(t.Context(), "kubernetes", metav1.GetOptions{}); apierrors.IsNotFound(err) {
		return nil
	}
	return published(t, client)
}

// published is what the two forms of the Service's endpoints say, a line for each object; a question mark follows what
// is not ready.
func published(t *testing.T, client kubernetes.Interface) []string {
	t.Helper()
	endpoints := testenv.Must(client.CoreV1().Endpoints("default").Get(t.Context(), "kubernetes", metav1.GetOptions{}))(t)
	line := "endpoints"
	for _, s := range endpoints.Subsets {
		for _, a := range s.Addresses {
			line += " " + net.JoinHostPort(a.IP, strconv.Itoa(int(s.Ports[0].Port)))
		}
		for _, a := range s.NotReadyAddresses {
			line += " " + net.JoinHostPort(a.IP, strconv.Itoa(int(s.Ports[0].Port))) + "?"
		}
	}
	out := []string{line}
	parts := testenv.Must(client.DiscoveryV1().EndpointSlices("default").List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"}))(t)
	for _, s := range parts.Items {
		line := s.Name + " " + string(s.AddressType)
		for _, e := range s.Endpoints {
			line += " " + net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*s.Ports[0].Port)))
			if !*e.Conditions.Ready {
				line += "?"
			}
			testenv.Equal(t, *e.Conditions.Serving, *e.Conditions.Ready, "%s: of serving and ready not the same is said:", line)
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return out
}
