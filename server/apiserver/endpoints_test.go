// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"net"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestEndpointReconciler(t *testing.T) {
	client := fake.NewClientset()
	addresses := []net.IP{net.ParseIP("192.0.2.1")}
	r := &endpointReconciler{client: client, addresses: func() []net.IP { return addresses }}
	ports := []corev1.EndpointPort{{Name: "https", Port: 6443, Protocol: corev1.ProtocolTCP}}

	reconcile := func(wantWrites int, wantType discoveryv1.AddressType, want ...string) {
		t.Helper()
		client.ClearActions()
		if err := r.ReconcileEndpoints("kubernetes", net.ParseIP("192.0.2.9"), ports, true); err != nil {
			t.Fatal(err)
		}
		writes := 0
		for _, a := range client.Actions() {
			if a.GetVerb() != "get" {
				writes++
			}
		}
		if writes != wantWrites {
			t.Errorf("%d writes, want %d: %v", writes, wantWrites, client.Actions())
		}
		endpoints, err := client.CoreV1().Endpoints("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		slice, err := client.DiscoveryV1().EndpointSlices("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var a, b []string
		for _, e := range endpoints.Subsets[0].Addresses {
			a = append(a, e.IP)
		}
		for _, e := range slice.Endpoints {
			b = append(b, e.Addresses...)
		}
		if fmt.Sprint(a) != fmt.Sprint(want) || fmt.Sprint(b) != fmt.Sprint(want) || slice.AddressType != wantType {
			t.Errorf("endpoints %v, slice %v of %s, want %v of %s", a, b, slice.AddressType, want, wantType)
		}
	}

	reconcile(2, discoveryv1.AddressTypeIPv4, "192.0.2.1")
	reconcile(0, discoveryv1.AddressTypeIPv4, "192.0.2.1")
	addresses = []net.IP{net.ParseIP("192.0.2.3"), net.ParseIP("192.0.2.1"), net.ParseIP("2001:db8::1"), net.ParseIP("192.0.2.3")}
	reconcile(2, discoveryv1.AddressTypeIPv4, "192.0.2.1", "192.0.2.3")
	reconcile(0, discoveryv1.AddressTypeIPv4, "192.0.2.1", "192.0.2.3")
	addresses = nil // another server knows them
	reconcile(0, discoveryv1.AddressTypeIPv4, "192.0.2.1", "192.0.2.3")
	addresses = []net.IP{net.ParseIP("2001:db8::1")}
	reconcile(3, discoveryv1.AddressTypeIPv6, "2001:db8::1")
	reconcile(0, discoveryv1.AddressTypeIPv6, "2001:db8::1")

	r.StopReconciling()
	client.ClearActions()
	if err := r.ReconcileEndpoints("kubernetes", nil, ports, true); err != nil || len(client.Actions()) != 0 {
		t.Errorf("after the end: %v, %v", err, client.Actions())
	}
}
