// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"

	"github.com/coracle-k8s/coracle/ingress/expression"
)

// freeSteps is the number of steps that a request may take without a turn: some milliseconds of a processor at most.
const freeSteps = 64 << 10

// steps are those that a request may still take to be compared with expressions. Beyond freeSteps the request waits for
// a turn, of which a tenant has one at a time, and for a processor. Half of the processors thus stay for requests that
// need none, however many a tenant's clients send.
type steps struct {
	request    *request
	host       *host // whose routes the request is compared with
	left, free int
	end        func() // ends the turn; nil without one
}

func (r *request) newSteps() steps {
	return steps{request: r, left: expression.MaxRequest, free: freeSteps}
}

// take returns false when fewer than n steps are left, or when no turn came.
func (s *steps) take(n int) bool {
	switch {
	case n > s.left:
		return false
	case n <= s.free:
		s.free -= n
	case s.end == nil && !s.wait():
		return false
	}
	s.left -= n
	return true
}

// wait waits for a turn. The turn is that of the namespace to which the host's routes belong. If they belong to several
// it is that of the client's address, so that the requests for one namespace do not wait for those for another.
func (s *steps) wait() (ok bool) {
	r := s.request
	key := s.host.namespace
	if key == "" {
		key = "client " + r.clientKey()
	}
	s.end, ok = r.proxy.comparisons.acquire(r.in.Context(), key)
	return ok
}

// finish ends the turn. The steps may be taken from again.
func (s *steps) finish() {
	if s.end != nil {
		s.end()
		s.end = nil
	}
}

// clientKey identifies the client's machine by its address.
func (r *request) clientKey() string {
	address := r.client()
	if ip, err := netip.ParseAddr(address); err == nil {
		return sourceOfAddress(ip.Unmap().WithZone("")).String() // a /64 of IPv6 is what one machine has
	}
	return address
}
