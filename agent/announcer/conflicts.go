// SPDX-License-Identifier: Apache-2.0

package announcer

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/internal/lbholders"
	"github.com/coracle-k8s/coracle/internal/vip"
)

// conflicts are other machines that use this node's addresses.
type conflicts struct {
	mu   sync.Mutex
	last map[netip.Addr]claim

	reported string // it belongs to Run
}

// claim is another machine's use of an address.
type claim struct {
	by net.HardwareAddr
	at time.Time
}

// of returns the conflicts over some addresses. It forgets those over others, and old ones.
func (c *conflicts) of(addresses []netip.Addr, now time.Time) lbholders.Conflicts {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.last, func(a netip.Addr, is claim) bool {
		return now.Sub(is.at) > conflictShown || !slices.Contains(addresses, a)
	})
	out := lbholders.Conflicts{}
	for a, is := range c.last {
		out[a] = is.by
	}
	return out
}

// claimed notes another machine that uses an address.
func (a *Announcer) claimed(address netip.Addr, by net.HardwareAddr) {
	a.o.Logger.Warn("load balancer: another machine uses an address of a Service", "address", address, "other", by.String())
	a.conflicts.mu.Lock()
	a.conflicts.last[address] = claim{by, time.Now()}
	a.conflicts.mu.Unlock()
	a.poke()
}

// prove returns when no other machine has an address that is new to the cluster; false when ctx is done before. No node answers for it meanwhile.
func (a *Announcer) prove(ctx context.Context, address netip.Addr, place vip.Place) bool {
	for {
		err := a.o.Probe(ctx, place, address)
		pause := time.Second
		var used *vip.InUseError
		switch {
		case err == nil:
			a.conflicts.mu.Lock()
			delete(a.conflicts.last, address)
			a.conflicts.mu.Unlock()
			a.poke()
			return true
		case errors.As(err, &used):
			pause = probeAgain
			a.claimed(address, used.By)
		case ctx.Err() == nil:
			a.o.Logger.Warn("load balancer: the network cannot be asked who has an address; it is tried again", "address", address, "error", err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
	}
}
