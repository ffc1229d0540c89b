// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/netip"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/klog/v2/ktesting"

	"github.com/coracle-k8s/coracle/test/netns"
)

// frontOf is a front without informers.
func frontOf(t *testing.T, b backend) *Proxy {
	log := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true)))
	o := Options{Reserved: Reserved{Ports: []uint16{6443, 10250, 10053}}}
	o.externals = newExternals(o, log)
	o.externals.host = &hostNetwork{}
	p := &Proxy{o: o, log: log, backend: b, reachable: newReachabilityFilter(b), wake: make(chan struct{}, 1)}
	p.nodeAddresses("a", []netip.Addr{netip.MustParseAddr(netns.NodeIP)})
	return p
}

// slice tells of a slice that came (was is nil), changed or went (is is nil).
func (e events) slice(was, is *discoveryv1.EndpointSlice) {
	switch {
	case was == nil && is == nil:
	case was == nil:
		e.OnEndpointSliceAdd(is)
	case is == nil:
		e.OnEndpointSliceDelete(was)
	default:
		e.OnEndpointSliceUpdate(was, is)
	}
}
