// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/coracle-k8s/coracle/ingress/outside"
)

// failurePause is how long an endpoint that could not be connected to is tried after the others only.
const failurePause = 5 * time.Second

// endpoint is one address of a backend. It survives changes of the set it is in.
type endpoint struct {
	address string
	// failed is when the last connection attempt failed, in nanoseconds of the Unix clock; 0 when the last one
	// succeeded.
	failed atomic.Int64
}

// endpointSet is where a backend is served now. Routes hold it by pointer, so that a change of its addresses rebuilds
// no route.
type endpointSet struct {
	list atomic.Pointer[[]*endpoint]
	next atomic.Uint32
	// mark is the sweep that last found the set in use; Apply owns it.
	mark uint64
	// present says that the table has a section for it; Apply owns it.
	present bool
}

// set replaces the addresses. Endpoints that stay keep what is known of them.
func (s *endpointSet) set(addresses []string) {
	old := map[string]*endpoint{}
	for _, e := range s.all() {
		old[e.address] = e
	}
	list := make([]*endpoint, 0, len(addresses))
	for _, a := range addresses {
		e := old[a]
		if e == nil {
			e = &endpoint{address: a}
		}
		list = append(list, e)
	}
	s.list.Store(&list)
}

func (s *endpointSet) all() []*endpoint {
	if list := s.list.Load(); list != nil {
		return *list
	}
	return nil
}

// pick returns the next endpoint in turn that is not among those tried, one whose last connection attempt failed only
// when no other is left. It returns nil when all were tried.
func (s *endpointSet) pick(tried []*endpoint, now time.Time) *endpoint {
	list := s.all()
	if len(list) == 0 {
		return nil
	}
	start := int(s.next.Add(1)-1) % len(list)
	var second *endpoint
	for i := range list {
		e := list[(start+i)%len(list)]
		if slices.Contains(tried, e) {
			continue
		}
		if failed := e.failed.Load(); failed == 0 || now.Sub(time.Unix(0, failed)) > failurePause {
			return e
		}
		if second == nil {
			second = e
		}
	}
	return second
}

// RefuseLocal is the default of Options.Refuse: it refuses addresses that stand for the machine itself or for its link
// alone.
func RefuseLocal(a netip.Addr) bool { return outside.Local(a) }

// addresses keeps those of a section that are literal addresses which may be dialled. The error names the first other
// one.
func addresses(all []string, refuse func(netip.Addr) bool) ([]string, error) {
	var first error
	out := make([]string, 0, len(all))
	for _, text := range all {
		a, err := netip.ParseAddrPort(text)
		if err == nil && (a.Port() == 0 || refuse(a.Addr().Unmap())) {
			err = fmt.Errorf("an ingress may not lead to the address %s", text)
		}
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		out = append(out, text)
	}
	return out, first
}
