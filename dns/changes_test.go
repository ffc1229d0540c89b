// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// set makes or changes an object, or deletes it where there is one.
func (a *api) set(o runtime.Object, gone bool) {
	if gone {
		a.Remove(o)
		return
	}
	a.Put(o)
}

// anyService is one of any type; it may have been of another one before.
func anyService(r *rand.Rand, i int) corev1.ServiceSpec {
	four, six := fmt.Sprintf("10.43.0.%d", 10+i), fmt.Sprintf("fd43::%x", 16+i)
	ports := []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}, {Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}, {Port: 7, Protocol: corev1.ProtocolSCTP}}
	ports = ports[:r.IntN(len(ports)+1)]
	without := corev1.ClusterIPNone
	return []corev1.ServiceSpec{
		{Type: corev1.ServiceTypeClusterIP, ClusterIP: four, ClusterIPs: []string{four}, Ports: ports},
		{Type: corev1.ServiceTypeNodePort, ClusterIP: six, ClusterIPs: []string{six, four}, Ports: ports},
		{Type: corev1.ServiceTypeLoadBalancer, ClusterIP: four, ClusterIPs: []string{four, six}, Ports: ports, ExternalIPs: []string{"192.0.2.66"}},
		{Type: corev1.ServiceTypeClusterIP, ClusterIP: without, ClusterIPs: []string{without}, Ports: ports},
		{Type: corev1.ServiceTypeClusterIP, ClusterIP: without, ClusterIPs: []string{without}, Ports: ports, PublishNotReadyAddresses: true},
		{Type: corev1.ServiceTypeExternalName, ExternalName: "example.org"},
		{Type: corev1.ServiceTypeExternalName, ExternalName: "s1.default.svc.cluster.local"},
		{Type: corev1.ServiceTypeExternalName, ExternalName: "192.0.2.7"},
	}[r.IntN(8)]
}

// anySlice is one of a Service, or of one that is not there, of the API's own or of anybody's.
func anySlice(r *rand.Rand, i int) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4}
	out.Labels = map[string]string{discoveryv1.LabelServiceName: fmt.Sprint("s", i)}
	switch r.IntN(5) {
	case 0, 1, 2:
		out.Labels[corev1.IsHeadlessService] = ""
	case 3:
		out.Labels[discoveryv1.LabelServiceName] = fmt.Sprint("s", r.IntN(6))
	case 4:
		out.Labels[discoveryv1.LabelManagedBy] = "endpointslicemirroring-controller.k8s.io"
	}
	prefix := "10.42.0."
	if r.IntN(3) == 0 {
		out.AddressType, prefix = discoveryv1.AddressTypeIPv6, "fd42::"
	}
	yes, no := true, false
	for range r.IntN(4) {
		e := discoveryv1.Endpoint{Addresses: []string{fmt.Sprint(prefix, 2+r.IntN(8))}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "p"}}
		e.Conditions.Ready = []*bool{nil, &yes, &no}[r.IntN(3)]
		e.Conditions.Serving, e.Conditions.Terminating = []*bool{nil, &yes, &no}[r.IntN(3)], []*bool{nil, &yes, &no}[r.IntN(3)]
		if r.IntN(2) == 0 {
			host := fmt.Sprint("h", r.IntN(2))
			e.Hostname = &host
		}
		out.Endpoints = append(out.Endpoints, e)
	}
	name, port, tcp := "http", int32(8080), corev1.ProtocolTCP
	if r.IntN(5) > 0 {
		out.Ports = append(out.Ports, discoveryv1.EndpointPort{Name: &name, Port: &port, Protocol: &tcp})
	}
	return out
}

// TestSameAnswersAfterChanges: whatever Services, their slices and Namespaces become, and in whichever order they come
// and go, the answers are those of a server with upstream's own caches.
func TestSameAnswersAfterChanges(t *testing.T) {
	if err := registerUpstream(); err != nil {
		t.Fatal(err)
	}
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	a := newAPI(t)
	a.namespace(t, "default")
	runBesideUpstream(t, a)
	spaces := []string{"default", "other"}
	answered := 0
	for range 40 {
		for range 1 + r.IntN(4) {
			i, gone := r.IntN(6), r.IntN(4) == 0
			named := metav1.ObjectMeta{Namespace: spaces[r.IntN(2)], Name: fmt.Sprint("s", i)}
			switch r.IntN(7) {
			case 0, 1, 2:
				a.set(&corev1.Service{ObjectMeta: named, Spec: anyService(r, i)}, gone)
			case 3, 4, 5:
				slice := anySlice(r, i)
				named.Labels = slice.Labels
				named.Name += fmt.Sprint("-", r.IntN(2))
				slice.ObjectMeta = named
				a.set(slice, gone)
			case 6:
				named.Name, named.Namespace = named.Namespace, ""
				a.set(&corev1.Namespace{ObjectMeta: named}, r.IntN(2) == 0)
			}
		}
		for range 25 {
			service := fmt.Sprintf("s%d.%s.svc.cluster.local.", r.IntN(6), spaces[r.IntN(2)])
			reverse := []string{fmt.Sprint("10.42.0.", 2+r.IntN(8)), fmt.Sprint("fd42::", 2+r.IntN(8)), fmt.Sprint("10.43.0.", 10+r.IntN(6)), fmt.Sprintf("fd43::%x", 16+r.IntN(6))}[r.IntN(4)]
			name, err := dns.ReverseAddr(reverse)
			if err != nil {
				t.Fatal(err)
			}
			kind := dns.TypePTR
			if r.IntN(3) > 0 {
				name = []string{"", "", "_http._tcp.", "_dns._udp.", "h0.", "h1.", "10-42-0-3.", "*.", "x."}[r.IntN(9)] + service
				kind = []uint16{dns.TypeA, dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeTXT, dns.TypeCNAME}[r.IntN(6)]
			}
			if len(wantSameAnswer(t, name, kind).Answer) > 0 {
				answered++
			}
		}
	}
	t.Logf("%d questions had an answer", answered)
	if answered < 50 {
		t.Errorf("only %d questions had an answer: the comparison says little", answered)
	}
}

// TestSlicesOfNoService: whoever may write EndpointSlices keeps nobody from an answer about an address.
func TestSlicesOfNoService(t *testing.T) {
	a := newAPI(t)
	a.namespace(t, "default")
	a.headless(t, "db", map[string]string{"db-0": "10.42.0.2"})
	host := "h"
	for i, label := range []string{"", "a..b", "c.d"} {
		a.Put(&discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "default", Name: fmt.Sprint("x", i), Labels: map[string]string{discoveryv1.LabelServiceName: label},
			},
			AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.42.0.2"}, Hostname: &host}},
		})
	}
	run(t, a, nil)
	wantAnswer(t, "db-0.db.default.svc.cluster.local", dns.TypeA, "10.42.0.2")
	wantAnswer(t, "2.0.42.10.in-addr.arpa", dns.TypePTR, "db-0.db.default.svc.cluster.local.")
}

// TestNoZoneTransfers: nobody gets all names at once.
func TestNoZoneTransfers(t *testing.T) {
	a := newAPI(t)
	a.namespace(t, "default")
	a.service(t, "web", "10.43.0.9")
	run(t, a, nil)
	wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
	for _, network := range []string{"udp", "tcp"} {
		for _, kind := range []uint16{dns.TypeAXFR, dns.TypeIXFR} {
			if got, rcode := answered(t, network, "cluster.local", kind); rcode != "REFUSED" || len(got) > 0 {
				t.Errorf("%s by %s: %v (%s)", dns.TypeToString[kind], network, got, rcode)
			}
		}
	}
}
