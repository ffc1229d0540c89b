// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/proxy"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestEndpointsAreChosenByTrafficPolicy: to which endpoints a node sends what is for a Service.
func TestEndpointsAreChosenByTrafficPolicy(t *testing.T) {
	// on is an endpoint at 10.0.0.number on a node; words are: ending, unready, zone=NAME, node=NAME (hints).
	on := func(node string, number int, words ...string) discoveryv1.Endpoint {
		e := discoveryv1.Endpoint{Addresses: []string{fmt.Sprint("10.0.0.", number)}, NodeName: &node, Hints: &discoveryv1.EndpointHints{}}
		e.Conditions = discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true), Terminating: ptr.To(false)}
		for _, w := range words {
			kind, name, _ := strings.Cut(w, "=")
			switch kind {
			case "ending":
				e.Conditions.Ready, e.Conditions.Terminating = ptr.To(false), ptr.To(true)
			case "unready":
				e.Conditions.Ready, e.Conditions.Serving = ptr.To(false), ptr.To(false)
			case "zone":
				e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: name})
			case "node":
				e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: name})
			}
		}
		return e
	}
	slice := func(port string, number int32, all ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{
			AddressType: discoveryv1.AddressTypeIPv4, Endpoints: all, Ports: []discoveryv1.EndpointPort{{Name: &port, Port: &number, Protocol: ptr.To(corev1.ProtocolTCP)}},
		}
	}
	http := func(all ...discoveryv1.Endpoint) []*discoveryv1.EndpointSlice {
		return []*discoveryv1.EndpointSlice{slice("http", 80, all...)}
	}
	six := slice("http", 80, on("b", 2))
	six.AddressType, six.Endpoints[0].Addresses = discoveryv1.AddressTypeIPv6, []string{"fd00::2"}
	datagrams := slice("http", 53, on("a", 1))
	datagrams.Ports[0].Protocol = ptr.To(corev1.ProtocolUDP)
	for _, c := range []struct {
		name   string
		slices []*discoveryv1.EndpointSlice
		down   string
		want   string
	}{
		{"the ready ones of the port", []*discoveryv1.EndpointSlice{slice("http", 80, on("a", 1), on("b", 2, "unready")), slice("admin", 81, on("a", 1)), datagrams}, "", "10.0.0.1:80"},
		{"conditions that say nothing", http(discoveryv1.Endpoint{Addresses: []string{"10.0.0.1"}}), "", "10.0.0.1:80"},
		{"in two slices, once", append(http(on("a", 1)), http(on("a", 1), on("b", 2))...), "", "10.0.0.1:80 10.0.0.2:80"},
		{"those that end where no other is", http(on("a", 1, "ending"), on("b", 2, "unready")), "", "10.0.0.1:80"},
		{"and not where one is", http(on("a", 1, "ending"), on("b", 2)), "", "10.0.0.2:80"},
		{"of the own zone", http(on("a", 1, "zone=z1"), on("b", 2, "zone=z2"), on("c", 3, "zone=z1")), "", "10.0.0.1:80 10.0.0.3:80"},
		{"not where one has no hint", http(on("a", 1, "zone=z1"), on("b", 2)), "", "10.0.0.1:80 10.0.0.2:80"},
		{"nor where none is for the own zone", http(on("b", 2, "zone=z2"), on("c", 3, "zone=z3")), "", "10.0.0.2:80 10.0.0.3:80"},
		{"of the own node", http(on("a", 1, "zone=z1", "node=a"), on("b", 2, "zone=z1", "node=b")), "", "10.0.0.1:80"},
		{"not on a node that is not reached", http(on("a", 1), on("b", 2)), "b", "10.0.0.1:80"},
		{"unless no other is left", http(on("b", 2)), "b", "10.0.0.2:80"},
		{"where one that ends is left", http(on("a", 1, "ending"), on("b", 2)), "b", "10.0.0.1:80"},
		{"hints do not lead to a node that is not reached", http(on("b", 1, "zone=z1"), on("c", 2, "zone=z2")), "b", "10.0.0.2:80"},
		{"each family by itself", append(http(on("a", 1), on("b", 2)), six), "b", "10.0.0.1:80 [fd00::2]:80"},
		{"a name", http(discoveryv1.Endpoint{Addresses: []string{"metadata.example"}}), "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := proxy.Node{Name: "a", Zone: "z1", Unreachable: map[string]bool{c.down: true}}
			for range 2 {
				var got []string
				for _, at := range p.Endpoints(c.slices, "http") {
					got = append(got, at.String())
				}
				testenv.Equal(t, strings.Join(got, " "), c.want, "the endpoints are")
				slices.Reverse(c.slices)
			}
		})
	}
}
