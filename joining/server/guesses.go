// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// Tokens may be tried at these rates, from one address and from all together. Right ones count too: otherwise an
	// immediate response would show that a token is right.
	perSource, sourceBurst = rate.Limit(3), 10
	perServer, serverBurst = rate.Limit(50), 100
	// maxGuessWait is how long a machine waits for its turn. If it would have to wait longer, its connection is closed.
	maxGuessWait = 5 * time.Second
	// maxSources limits the remembered addresses. When there are more, all are deleted. The rate for all together still
	// applies.
	maxSources = 4096
)

// guesses limits the rate at which tokens are tried.
type guesses struct {
	total *rate.Limiter

	mu      sync.Mutex
	sources map[netip.Addr]*rate.Limiter
}

func newGuesses() *guesses {
	return &guesses{total: rate.NewLimiter(perServer, serverBurst), sources: map[netip.Addr]*rate.Limiter{}}
}

// wait waits for the turn of a machine at an address. It returns false if that takes too long.
func (g *guesses) wait(ctx context.Context, from net.Addr) bool {
	ctx, cancel := context.WithTimeout(ctx, maxGuessWait)
	defer cancel()
	return g.limiterOf(from).Wait(ctx) == nil && g.total.Wait(ctx) == nil
}

// sourceOf returns the address for which a connection counts. IPv6 addresses count by their /64 network, since a
// machine has as many of them as it likes.
func sourceOf(from net.Addr) netip.Addr {
	at, err := netip.ParseAddrPort(from.String())
	if err != nil {
		return netip.Addr{}
	}
	source := at.Addr().Unmap()
	if p, err := source.WithZone("").Prefix(64); err == nil && source.Is6() {
		source = p.Addr()
	}
	return source
}

// limiterOf returns the limiter for attempts from the source of an address (see sourceOf).
func (g *guesses) limiterOf(from net.Addr) *rate.Limiter {
	source := sourceOf(from)
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.sources[source]
	if l == nil {
		if len(g.sources) >= maxSources {
			clear(g.sources)
		}
		l = rate.NewLimiter(perSource, sourceBurst)
		g.sources[source] = l
	}
	return l
}
