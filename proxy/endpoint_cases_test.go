// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/services"
)

// Cases of which endpoints a Service has.

// only waits until these endpoints answer, each of them, and no other one.
func only(t *testing.T, from netns.Doer, addr string, want ...string) {
	t.Helper()
	eventually(t, fmt.Sprint("of ", addr, " only ", want, " answers"), func() error {
		var seen []string
		for range 12 * len(want) {
			server, _, err := ask(from, addr)
			if err != nil {
				return err
			}
			if !slices.Contains(want, server) {
				return fmt.Errorf("%s answers", server)
			}
			seen = append(seen, server)
		}
		for _, w := range want {
			if !slices.Contains(seen, w) {
				return fmt.Errorf("%s does not answer", w)
			}
		}
		return nil
	})
}

// notServing is an endpoint of which that is said.
func notServing(ip string) discoveryv1.Endpoint {
	e := services.At(ip, "n1", "nt")
	e.Conditions.Serving = ptr.To(false)
	return e
}

const one, two = "10.42.0.2", "10.42.0.6"

func testConditions(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	b.service(t, nil)
	addr := clusterIP + ":80"
	b.put(services.At(one, "n1", "nst"), services.At(two, "n1", "rs"))
	only(t, b.outside, addr, two) // one is on its way out, and another one is ready
	b.put(services.At(one, "n1", "nst"), notServing(two))
	only(t, b.outside, addr, one)
	b.put(notServing(one), services.At(two, "n1", "nt")) // nothing is said of serving
	only(t, b.outside, addr, two)
	b.put(notServing(one), notServing(two))
	netns.Refused(t, b.outside, addr)
	b.put(services.At(one, "n1", ""), services.At(two, "n1", "n")) // nothing is said of ready
	only(t, b.outside, addr, one)
	b.put(services.At(one, "n1", "n"), services.At(two, "n1", "n"))
	netns.Refused(t, b.outside, addr)
}

// testTerminatingHere has the policy Local keep to an endpoint here, though it is on its way out, while others
// elsewhere are ready.
func testTerminatingHere(t *testing.T, mode string) {
	b := routed(t, mode)
	b.service(t, func(s *corev1.Service) {
		balancer(s)
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	})
	b.put(services.At(one, "n1", "nst"), services.At(two, "n2", "rs"))
	only(t, b.outside, balancerIP+":80", one)
	only(t, b.outside, nodeAddr+":30080", one)
	only(t, b.outside, clusterIP+":80", two)
}

func testHints(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	b.service(t, func(s *corev1.Service) {
		s.Spec.TrafficDistribution = ptr.To(corev1.ServiceTrafficDistributionPreferSameZone)
	})
	addr := clusterIP + ":80"
	b.put(services.At(one, "n1", "rs", "east"), services.At(two, "n2", "rs", "west"))
	only(t, b.outside, addr, one)
	b.put(services.At(one, "n1", "rs", "west"), services.At(two, "n2", "rs", "east"))
	only(t, b.outside, addr, two)
	b.put(services.At(one, "n1", "rs", "west"), services.At(two, "n2", "rs", "west")) // none is meant for this zone
	only(t, b.outside, addr, one, two)
	b.put(services.At(one, "n1", "rs", "east"), services.At(two, "n2", "rs")) // one without a hint
	only(t, b.outside, addr, one, two)
	b.put(services.ForNode(services.At(one, "n1", "rs", "east"), "n1"), services.ForNode(services.At(two, "n2", "rs", "east"), "n2"))
	only(t, b.outside, addr, one)
	b.put(services.ForNode(services.At(one, "n1", "rs", "east"), "n2"), services.ForNode(services.At(two, "n2", "rs", "east"), "n1"))
	only(t, b.outside, addr, two)
}

// testNodesZone has the node come to another zone.
func testNodesZone(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	b.service(t, nil)
	b.put(services.At(one, "n1", "rs", "east"), services.At(two, "n2", "rs", "west"))
	only(t, b.outside, clusterIP+":80", one)
	b.api.Put(bedNode("west"))
	only(t, b.outside, clusterIP+":80", two)
}

func testInternalLocal(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	b.service(t, func(s *corev1.Service) {
		s.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
	})
	b.put(services.At(one, "n1", "rs"), services.At(two, "n2", "rs"))
	for _, from := range []netns.Doer{b.pods[two], here{}} {
		only(t, from, clusterIP+":80", one)
	}
	only(t, b.outside, nodeAddr+":30080", one, two) // of which the policy says nothing
	b.put(services.At(two, "n2", "rs"))
	netns.Silent(t, b.pods[one], clusterIP+":80")
	netns.Silent(t, here{}, clusterIP+":80")
	only(t, b.outside, nodeAddr+":30080", two)
	b.put()
	netns.Refused(t, b.pods[one], clusterIP+":80")
}

func testBothLocal(t *testing.T, mode string) {
	b := routed(t, mode)
	b.service(t, func(s *corev1.Service) {
		balancer(s)
		s.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	})
	b.put(services.At(two, "n2", "rs"))
	netns.Silent(t, b.outside, balancerIP+":80")
	netns.Silent(t, b.pods[one], clusterIP+":80")
	if b.differs(t, "with both policies Local pods are bound by the external one, too") {
		netns.Silent(t, b.pods[one], balancerIP+":80")
	} else {
		reaches(t, b.pods[one], "inside, elsewhere's endpoint does", balancerIP+":80")
	}
	b.put(services.At(one, "n1", "rs"), services.At(two, "n2", "rs"))
	only(t, b.outside, balancerIP+":80", one)
	only(t, b.pods[two], clusterIP+":80", one)
}

// testSlices has a Service whose endpoints are in several slices, with ports of their own, as during an update of its
// pods.
func testSlices(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	netns.Serve(t, b.pods[two], "new", "tcp", ":8081")
	b.service(t, nil)
	addr := clusterIP + ":80"
	b.put(services.At(one, "n1", "rs"))
	other := func(port int32, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
		s := b.sliceWith(endpoints...)
		s.Name, s.Ports[0].Port = "web-2", &port
		return s
	}
	b.api.Put(other(8081, services.At(two, "n1", "rs")))
	only(t, b.outside, addr, one, "new")
	b.put()
	only(t, b.outside, addr, "new")
	b.put(services.At(two, "n1", "rs")) // the same pod at both ports
	only(t, b.outside, addr, two, "new")
	b.api.Put(other(8080, services.At(two, "n1", "rs"))) // the same endpoint in both slices
	only(t, b.outside, addr, two)
	b.api.Remove(other(8080))
	only(t, b.outside, addr, two)
	b.api.Remove(b.sliceWith())
	netns.Refused(t, b.outside, addr)
}

// affine gives a Service session affinity for so many seconds.
func affine(seconds int32) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
}

// testAffinityEnds has a client stay away for longer than its time.
func testAffinityEnds(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	b.service(t, affine(1))
	b.endpoints(t, one, two)
	first, _ := netns.Reach(t, b.outside, clusterIP+":80")
	again := func() string {
		time.Sleep(1500 * time.Millisecond) // the affinity's second has to pass: that it ends is what is tried
		server, _ := netns.Reach(t, b.outside, clusterIP+":80")
		return server
	}
	if b.differs(t, "affinity outlasts its time, as long as the kernel remembers the client's last connection") {
		for range 5 {
			if server := again(); server != first {
				t.Errorf("%s answers; want %s as before", server, first)
			}
		}
		return
	}
	eventually(t, "another endpoint than "+first+" answers", func() error {
		if server := again(); server == first {
			return fmt.Errorf("still %s", server)
		}
		return nil
	})
}

// testAffinityMoves: an endpoint goes, and so do the clients that it had; affinity is taken away, and clients go
// anywhere.
func testAffinityMoves(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	b.service(t, affine(600))
	b.endpoints(t, one, two)
	first, _ := netns.Reach(t, b.outside, clusterIP+":80")
	other := map[string]string{one: two, two: one}[first]
	b.endpoints(t, other)
	only(t, b.outside, clusterIP+":80", other)
	b.endpoints(t, one, two)
	b.service(t, nil)
	only(t, b.outside, clusterIP+":80", one, two)
}

// bedNode is the bed's node, in a zone.
func bedNode(zone string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: zone, corev1.LabelHostname: "n1"}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeAddr}}},
	}
}

// sliceWith is the Service's slice with these endpoints.
func (b *testbed) sliceWith(endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	s := b.sliceOn("n1")
	s.Endpoints = endpoints
	return s
}

// put makes these the Service's endpoints.
func (b *testbed) put(endpoints ...discoveryv1.Endpoint) { b.api.Put(b.sliceWith(endpoints...)) }

// testOthersNode is about a load balancer's address that is another node's.
func testOthersNode(t *testing.T, mode string) {
	b := newTestbed(t, mode)
	b.routeBack(t)
	netns.Serve(t, b.outside, "n2", "tcp", ":80")
	n2 := bedNode("west")
	n2.Name, n2.Status.Addresses[0].Address = "n2", outsideAddr
	b.api.Put(n2)
	b.service(t, func(s *corev1.Service) {
		balancer(s)
		s.Status.LoadBalancer.Ingress[0].IP = outsideAddr
	})
	b.endpoints(t, one)
	reaches(t, b.pods[two], "the cluster IP", clusterIP+":80")
	want := one
	if b.differs(t, "a load balancer's address that is another node's leads to that node") {
		want = "n2"
	}
	only(t, b.pods[two], outsideAddr+":80", want)
}
