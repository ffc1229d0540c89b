// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"

	"github.com/coracle-k8s/coracle/ingress/expression"
)

// freeSteps is the number of steps that a request may take without waiting: some milliseconds of a processor at most.
const freeSteps = 64 << 10

// steps are those that a request may still take to be compared with expressions. After freeSteps the request waits for
// the place of its tenant, which one request has at a time, and for a processor. So half of the processors stay free
// for other requests, however many requests a tenant's clients send.
type steps struct {
	request             *request
	host                *host // whose routes the request is compared with
	remaining, freeLeft int
	release             func() // releases the place and the processor; nil without them
}

func (r *request) newSteps() steps {
	return steps{request: r, remaining: expression.MaxRequest, freeLeft: freeSteps}
}

// spend takes n steps. It returns false when fewer are left, or when waiting failed.
func (s *steps) spend(n int) bool {
	switch {
	case n > s.remaining:
		return false
	case n <= s.freeLeft:
		s.freeLeft -= n
	case s.release == nil && !s.wait():
		return false
	}
	s.remaining -= n
	return true
}

// wait waits for the place of a tenant and for a processor. The tenant is the namespace to which the host's routes
// belong. If they belong to several, it is the client's address. So the requests for one namespace do not wait for
// those for another.
func (s *steps) wait() (ok bool) {
	r := s.request
	key := s.host.namespace
	if key == "" {
		key = "client " + r.clientKey()
	}
	s.release, ok = r.proxy.comparisons.acquire(r.in.Context(), key)
	return ok
}

// releaseQueue releases the place and the processor. spend may be called again.
func (s *steps) releaseQueue() {
	if s.release != nil {
		s.release()
		s.release = nil
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
