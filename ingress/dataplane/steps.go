// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/ingress/expression"
)

// freeSteps is the number of steps that a request may take without a turn: some milliseconds of a processor at most.
const freeSteps = 64 << 10

// turns lets one request of each key at a time go on.
type turns struct {
	mu sync.Mutex
	of map[string]*turn
}

type turn struct {
	place chan struct{}
	users int // who have it or wait for it
}

// join returns the place for a key. leave must be called when the place is not used any more.
func (t *turns) join(key string) (place chan struct{}, leave func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	one := t.of[key]
	if one == nil {
		one = &turn{place: make(chan struct{}, 1)}
		t.of[key] = one
	}
	one.users++
	return one.place, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(t.of, key)
		}
	}
}

// steps are those that a request may still take to be compared with expressions. Beyond freeSteps the request waits for
// a turn, of which a tenant has one at a time, and for a processor. Half of the processors thus stay for requests that
// need none, however many a tenant's clients send.
type steps struct {
	exchange   *exchange
	host       *host // whose routes the request is compared with
	left, free int
	end        func() // ends the turn; nil without one
}

func (x *exchange) newSteps() steps {
	return steps{exchange: x, left: expression.MaxRequest, free: freeSteps}
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
func (s *steps) wait() bool {
	x := s.exchange
	key := s.host.namespace
	if key == "" {
		key = "client " + x.clientKey()
	}
	place, leave := x.proxy.comparing.join(key)
	limit := time.NewTimer(x.proxy.hashWait)
	defer limit.Stop()
	end := leave
	for _, one := range [...]chan struct{}{place, x.proxy.hashing} {
		select {
		case one <- struct{}{}:
			before := end
			end = func() {
				<-one
				before()
			}
		case <-x.in.Context().Done():
			end()
			panic(http.ErrAbortHandler)
		case <-limit.C:
			end()
			return false
		}
	}
	s.end = end
	return true
}

// finish ends the turn. The steps may be taken from again.
func (s *steps) finish() {
	if s.end != nil {
		s.end()
		s.end = nil
	}
}

// clientKey identifies the client's machine by its address.
func (x *exchange) clientKey() string {
	address := x.client()
	if ip, err := netip.ParseAddr(address); err == nil {
		return sourceOfAddress(ip.Unmap().WithZone("")).String() // a /64 of IPv6 is what one machine has
	}
	return address
}
