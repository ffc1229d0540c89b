// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/coracle-k8s/coracle/ingress/outside"
)

// failurePause is the time for which an endpoint is tried only after the others, once a dial to it failed. Then one
// request tries it again, and the others wait for as long.
const failurePause = 5 * time.Second

// endpoint is one address of a backend. It is kept when the set that it is in changes.
type endpoint struct {
	address string
	// failed is the time of the last connection attempt, if it failed, in nanoseconds of the Unix clock. It is 0 if
	// that attempt succeeded.
	failed atomic.Int64
	// left counts attempts to connect whose requests have ended.
	left atomic.Int32
}

// paused reports whether the last connection attempt failed, less than failurePause ago.
func (e *endpoint) paused(now time.Time) bool {
	failed := e.failed.Load()
	return failed != 0 && now.Sub(time.Unix(0, failed)) <= failurePause
}

// tryAcquire reports whether a request may try the endpoint. After a failed attempt and its pause, only one of several
// requests may: tryAcquire begins another pause.
func (e *endpoint) tryAcquire(now time.Time) bool {
	failed := e.failed.Load()
	return failed == 0 || !e.paused(now) && e.failed.CompareAndSwap(failed, now.UnixNano())
}

func (e *endpoint) connected() {
	if e.failed.Load() != 0 {
		e.failed.Store(0)
	}
}

// endpointSet holds the current endpoints of a backend. Routes hold a pointer to it, so that a change of its addresses
// rebuilds no route.
type endpointSet struct {
	list      atomic.Pointer[[]*endpoint]
	nextIndex atomic.Uint32
	shared
}

// setAddresses replaces the addresses. Endpoints whose address remains keep their state.
func (s *endpointSet) setAddresses(addresses []string) {
	old := map[string]*endpoint{}
	for _, e := range s.endpoints() {
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

func (s *endpointSet) endpoints() []*endpoint {
	if list := s.list.Load(); list != nil {
		return *list
	}
	return nil
}

// nextInTurn returns the next endpoint in turn that was not tried yet. An endpoint whose last connection attempt failed
// comes only when no other is left. It returns nil when all were tried.
func (s *endpointSet) nextInTurn(tried []*endpoint, now time.Time) *endpoint {
	list := s.endpoints()
	if len(list) == 0 {
		return nil
	}
	start := int(s.nextIndex.Add(1)-1) % len(list)
	var second *endpoint
	for i := range list {
		e := list[(start+i)%len(list)]
		if slices.Contains(tried, e) {
			continue
		}
		if e.tryAcquire(now) {
			return e
		}
		second = cmp.Or(second, e)
	}
	return second
}

// nextByHash returns the endpoint of highestHash, as long as no other request tries it after a failure.
func (s *endpointSet) nextByHash(key string, tried []*endpoint, now time.Time) *endpoint {
	for {
		if e := s.highestHash(key, tried, now); e == nil || e.paused(now) || e.tryAcquire(now) {
			return e
		}
	}
}

// highestHash returns, of the endpoints not tried yet, the one with the highest hash of its address and a key (D.
// Thaler and C. Ravishankar, 1998: when an endpoint is removed, only its keys move). Endpoints whose last connection
// attempt failed come after the others. It returns nil when all were tried.
func (s *endpointSet) highestHash(key string, tried []*endpoint, now time.Time) *endpoint {
	var best, second *endpoint
	var bestHash, secondHash uint64
	for _, e := range s.endpoints() {
		if slices.Contains(tried, e) {
			continue
		}
		h := fnv.New64a()
		_, _ = h.Write([]byte(key + "\x00" + e.address)) // never fails
		sum := mix(h.Sum64())
		if !e.paused(now) {
			if best == nil || sum > bestHash {
				best, bestHash = e, sum
			}
		} else if second == nil || sum > secondHash {
			second, secondHash = e, sum
		}
	}
	if best == nil {
		return second
	}
	return best
}

// mix spreads a hash over all bits (the finalizer of MurmurHash3). In FNV the last bytes of a text change few bits.
func mix(h uint64) uint64 {
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// RefuseLocal is the default of Options.Refuse. It refuses addresses that are valid only on the machine itself or on
// its link.
func RefuseLocal(a netip.Addr) bool { return outside.Local(a) }

// addresses returns the addresses of a section that are literal and may be dialled. The error names the first of the
// others.
func addresses(all []string, refuse func(netip.Addr) bool) ([]string, error) {
	var first error
	out := make([]string, 0, len(all))
	for _, text := range all {
		a, err := netip.ParseAddrPort(text)
		if err == nil && (a.Port() == 0 || refuse(a.Addr().Unmap())) {
			err = fmt.Errorf("an ingress may not lead to the address %s", text)
		}
		if err != nil {
			first = cmp.Or(first, err)
			continue
		}
		out = append(out, text)
	}
	return out, first
}
