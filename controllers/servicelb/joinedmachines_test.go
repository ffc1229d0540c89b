// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/test/services/lb"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestDeletedNodesAddressIsNotAllocated: where a pool covers machines, a Service does not get the address of one whose
// Node was deleted, so that it can come back. A Service that has the address keeps it: a user who may let machines in
// could say any address.
func TestDeletedNodesAddressIsNotAllocated(t *testing.T) {
	gone, asked := errors.New("the API is away"), 0
	for _, c := range []struct {
		name string
		svc  *corev1.Service
		fail error
		want string
		asks int
	}{
		{"a new Service", lb.Service("web", 1), nil, "10.0.0.202", 1},
		{"one that asks for the address", lb.Service("web", 1, lb.LoadBalancerIP("10.0.0.201")), nil, "none", 1},
		{"one that asks for another", lb.Service("web", 1, lb.LoadBalancerIP("10.0.0.202")), nil, "10.0.0.202", 1},
		{"one that has the address", lb.Service("web", 1, lb.Having("10.0.0.201")), nil, "10.0.0.201", 0},
		{"it is not known which machines there are", lb.Service("web", 1), gone, "none", 1},
		{"not known, and none is to get one", lb.Service("web", 1, lb.Having("10.0.0.201")), gone, "10.0.0.201", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked = 0
			client := fake.NewClientset(c.svc, lb.Node("a", "10.0.0.1"))
			controller, known := late(t, client, func(o *Options) {
				o.Pool = lb.Ranges("10.0.0.200-10.0.0.202")
				o.Barred = func() []netip.Addr { return nil }
				o.Alive = func(string) bool { return true }
				o.JoinedAddresses = func(context.Context) ([]netip.Addr, error) {
					asked++
					return []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.200"), netip.MustParseAddr("10.0.0.201")}, c.fail
				}
			})
			testenv.NoError(t, known.Add(c.svc.DeepCopy()))
			if done := controller.checkServices(t.Context()); done == (c.fail != nil && c.asks > 0) {
				t.Errorf("the round says that all was done: %v", done)
			}
			got := testenv.Must(client.CoreV1().Services("default").Get(t.Context(), "web", metav1.GetOptions{}))(t)
			if text := ingressText(got.Status.LoadBalancer); text != c.want || asked != c.asks {
				t.Errorf("it has %s, want %s; machines were asked for %d times, want %d", text, c.want, asked, c.asks)
			}
		})
	}
}
