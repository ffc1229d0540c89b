// SPDX-License-Identifier: Apache-2.0

package webconsole

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func consoleNode(name, uid string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(uid)}}
}

func TestConsoleServiceHasAnEndpointOfEachServer(t *testing.T) {
	client := fake.NewClientset(consoleNode("one", "1"), consoleNode("two", "2"))
	ctx := t.Context()
	one := &consoleService{client: client, server: "one", hasNode: true, endpoint: netip.MustParseAddrPort("192.0.2.1:8443")}
	two := &consoleService{client: client, server: "two", hasNode: true, endpoint: netip.MustParseAddrPort("192.0.2.2:9443")}
	for _, c := range []*consoleService{one, two, one} {
		testenv.NoError(t, c.apply(ctx))
	}
	service := testenv.Must(client.CoreV1().Services("kube-system").Get(ctx, "console", metav1.GetOptions{}))(t)
	if p := service.Spec.Ports; len(service.Spec.Selector) != 0 || len(p) != 1 || p[0].Port != 443 || *p[0].AppProtocol != "https" {
		t.Errorf("the Service is %+v", service.Spec)
	}
	for name, want := range map[string]string{"one": "192.0.2.1:8443", "two": "192.0.2.2:9443"} {
		s := testenv.Must(client.DiscoveryV1().EndpointSlices("kube-system").Get(ctx, "console-"+name, metav1.GetOptions{}))(t)
		got := netip.AddrPortFrom(netip.MustParseAddr(s.Endpoints[0].Addresses[0]), uint16(*s.Ports[0].Port)) //nolint:gosec // a port
		if got.String() != want || *s.Endpoints[0].NodeName != name || s.OwnerReferences[0].Name != name ||
			s.Labels[discoveryv1.LabelServiceName] != "console" {
			t.Errorf("the slice of %s is %+v", name, s)
		}
	}

	// One server does not serve it any more, then the other.
	one.endpoint, two.endpoint = netip.AddrPort{}, netip.AddrPort{}
	testenv.NoError(t, one.apply(ctx))
	testenv.Check(t, testenv.Err(client.CoreV1().Services("kube-system").Get(ctx, "console", metav1.GetOptions{})), "the Service of the other")
	testenv.NoError(t, two.apply(ctx))
	if _, err := client.CoreV1().Services("kube-system").Get(ctx, "console", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the Service that no server serves: %v", err)
	}
	if list, err := client.DiscoveryV1().EndpointSlices("kube-system").List(ctx, metav1.ListOptions{}); err != nil || len(list.Items) != 0 {
		t.Errorf("%d slices are left, %v", len(list.Items), err)
	}
}

func TestConsoleServiceOfOthersIsLeftAlone(t *testing.T) {
	client := fake.NewClientset(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "console", Namespace: "kube-system"}})
	c := &consoleService{client: client, server: "one", endpoint: netip.MustParseAddrPort("192.0.2.1:8443")}
	testenv.ErrorIs(t, c.apply(t.Context()), errForeignService, "it is taken")
	if list, err := client.DiscoveryV1().EndpointSlices("kube-system").List(t.Context(),
		metav1.ListOptions{}); err != nil || len(list.Items) != 0 {
		t.Errorf("it gets %d slices, %v", len(list.Items), err)
	}
	c.endpoint = netip.AddrPort{}
	testenv.Check(t, c.apply(t.Context()))
	testenv.Check(t, testenv.Err(client.CoreV1().Services("kube-system").Get(t.Context(), "console", metav1.GetOptions{})), "it is gone")
}

func TestConsoleServiceWaitsForTheNode(t *testing.T) {
	client := fake.NewClientset()
	c := &consoleService{client: client, server: "one", hasNode: true, endpoint: netip.MustParseAddrPort("192.0.2.1:8443")}
	if err := c.apply(t.Context()); !apierrors.IsNotFound(err) {
		t.Errorf("without a Node: %v", err)
	}
}
