// SPDX-License-Identifier: Apache-2.0

package lbspeaker

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/vip"
)

// findings are the probes' results for this node's addresses: other machines that use them, and addresses that were
// proven to be unused.
type findings struct {
	mu         sync.Mutex
	conflictOf map[netip.Addr]conflict
	proven     loadbalancer.Proven

	reported string // only Run uses it
}

// conflict is another machine's use of an address.
type conflict struct {
	hardware net.HardwareAddr
	seenAt   time.Time
}

// conflicts returns the conflicts of some addresses, and which proofs the record lacks. It deletes conflicts of other
// addresses, old conflicts, and proofs that the record has.
func (f *findings) conflicts(
	record loadbalancer.Holders, addresses []netip.Addr, now time.Time,
) (loadbalancer.Conflicts, loadbalancer.Proven) {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.conflictOf, func(a netip.Addr, is conflict) bool {
		return now.Sub(is.seenAt) > conflictShown || !slices.Contains(addresses, a)
	})
	maps.DeleteFunc(f.proven, func(a netip.Addr, term uint64) bool {
		h := record[a]
		return !h.New || h.Term != term || !slices.Contains(addresses, a)
	})
	out := loadbalancer.Conflicts{}
	for a, is := range f.conflictOf {
		out[a] = is.hardware
	}
	return out, maps.Clone(f.proven)
}

// noteConflict records another machine that uses an address.
func (s *Speaker) noteConflict(address netip.Addr, by net.HardwareAddr) {
	s.o.Logger.Warn("load balancer: another machine uses an address of a Service", "address", address, "other", by.String())
	s.findings.mu.Lock()
	s.findings.conflictOf[address] = conflict{by, time.Now()}
	s.findings.mu.Unlock()
	s.changed.Send()
}

// prove returns true when an address is proven to be used by no other machine. It returns false when ctx is done
// before. No node announces the address meanwhile.
func (s *Speaker) prove(ctx context.Context, address netip.Addr, h loadbalancer.Holder, place vip.Interface) bool {
	for {
		err := s.o.Probe(ctx, place, address)
		pause := time.Second
		var used *vip.InUseError
		switch {
		case err == nil:
			s.findings.mu.Lock()
			delete(s.findings.conflictOf, address)
			s.findings.proven[address] = h.Term
			s.findings.mu.Unlock()
			s.changed.Send()
			return true
		case errors.As(err, &used):
			pause = probeAgain
			s.noteConflict(address, used.By)
		case ctx.Err() == nil:
			s.o.Logger.Warn("load balancer: the network cannot be asked who has an address; retrying", "address", address, "error",
				err)
		}
		if !timers.Sleep(ctx, pause) {
			return false
		}
	}
}
