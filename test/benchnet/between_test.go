//go:build bench

// SPDX-License-Identifier: Apache-2.0

package benchnet

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/netns"
)

// TestBetween measures the ways from pod to pod beside two namespaces that are joined by a veth pair and nothing else.
func TestBetween(t *testing.T) {
	netns.RequireNFT(t)
	names := []string{"veth pair alone"}
	routes := []route{rawVeth(t)}

	one := newSite(t, "one", 1, nil)
	a, b := one.nodes[0].pod("a"), one.nodes[0].pod("b")
	names, routes = append(names, "one node"), append(routes, route{from: a, to: b.ip, sink: serve(t, b)})

	for _, backend := range []string{clusterconfig.NetworkHostGateway, clusterconfig.NetworkVXLAN, clusterconfig.NetworkWireGuard} {
		s := newSite(t, backend[:2], 2, func(c *nodeConfig) { c.Backend = backend })
		a, b := s.nodes[0].pod("a"), s.nodes[1].pod("b")
		r := route{from: a, to: b.ip, sink: serve(t, b)}
		name := "two nodes, " + backend
		if backend == clusterconfig.NetworkWireGuard {
			r.through = []*process{s.nodes[0].process, s.nodes[1].process}
			if !kernelWireGuard(s.nodes[0]) {
				name += " (wireguard-go: this kernel has none)"
			}
		}
		names, routes = append(names, name), append(routes, r)
	}
	for i, r := range routes {
		eventually(t, names[i]+" works", func() error { _, err := r.connect(echoPort, 1, time.Millisecond); return err })
	}

	window := pick(3*time.Second, 500*time.Millisecond)
	var variants []variant
	for i, r := range routes {
		variants = append(variants, variant{names[i], func() (sample, error) {
			out := sample{}
			s, err := r.stream(window)
			prefixed("TCP", s, out)
			if err == nil {
				s, err = r.pingPong(unix.SOCK_STREAM, echoPort, 1, window)
				prefixed("TCP", s, out)
			}
			if err == nil {
				s, err = r.pingPong(unix.SOCK_DGRAM, echoPort, 1, window)
				prefixed("UDP", s, out)
			}
			if err == nil {
				s, err = r.connect(echoPort, 1, window)
				prefixed("new", s, out)
			}
			return out, err
		}})
	}
	compare(t, "Pod to pod: one TCP connection that sends as fast as it can; 64 bytes there and back; a new connection with a byte there and back", pick(5, 1), []column{
		{name: "TCP Gbit/s", ratio: true}, {name: "TCP CPU ms/GB", format: "%.0f", ratio: true},
		{name: "TCP p50 µs"}, {name: "TCP p99 µs", format: "%.0f"}, {name: "TCP CPU µs", ratio: true},
		{name: "UDP p50 µs"}, {name: "UDP p99 µs", format: "%.0f"},
		{name: "new p50 µs", format: "%.0f"}, {name: "new CPU µs", ratio: true},
	}, variants)
}

func rawVeth(t *testing.T) route {
	a, b := netns.New(t), netns.New(t)
	netns.Connect(t, a, "eth0", []string{"198.51.100.1/24"}, b, "eth0", []string{"198.51.100.2/24"})
	return route{from: a, to: netip.MustParseAddr("198.51.100.2"), sink: serve(t, b)}
}

// kernelWireGuard says whether it is the kernel that encrypts.
func kernelWireGuard(n *labNode) bool {
	kind := ""
	_ = n.ns.Do(func() error {
		link, err := netlink.LinkByName("coracle-wg")
		if err == nil {
			kind = link.Type()
		}
		return err
	})
	return kind == "wireguard"
}
