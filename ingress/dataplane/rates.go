// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// maxClients bounds how many clients a limiter remembers. When there are more, those that have asked for little are
// forgotten.
const maxClients = 16384

// limiter counts what clients ask for at the routes of one object.
type limiter struct {
	from *table.Limit

	mu      sync.Mutex
	clients map[string]*account
	// mark is the sweep that last found the limiter in use; Apply owns it.
	mark uint64
}

// account is what a limiter knows of one address: by how much it is ahead of its rates, in requests, at the time last.
type account struct {
	second, minute float64
	last           time.Time
	open           int
}

// leak is what has flowed out of the buckets until now.
func (l *limiter) leak(c *account, now time.Time) {
	past := now.Sub(c.last).Seconds()
	c.second = max(0, c.second-past*float64(l.from.PerSecond))
	c.minute = max(0, c.minute-past*float64(l.from.PerMinute)/60)
	c.last = now
}

// acquire reports whether a request of the client may pass. release must be called when it has ended; it is nil for one
// that may not.
func (l *limiter) acquire(address string, now time.Time) (release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.clients[address]
	if c == nil {
		l.evict(now)
		c = &account{last: now}
		l.clients[address] = c
	}
	l.leak(c, now)
	f := l.from
	burst := float64(f.Burst)
	if f.Connections > 0 && c.open >= f.Connections || f.PerMinute > 0 && c.minute > burst*float64(f.PerMinute) ||
		f.PerSecond > 0 && c.second > burst*float64(f.PerSecond) {
		return nil
	}
	c.open++
	c.second, c.minute = c.second+1, c.minute+1
	var once sync.Once
	return func() {
		once.Do(func() {
			l.mu.Lock()
			c.open--
			l.mu.Unlock()
		})
	}
}

// evict makes room for one more client.
func (l *limiter) evict(now time.Time) {
	if len(l.clients) < maxClients {
		return
	}
	for address, c := range l.clients {
		l.leak(c, now)
		if c.open == 0 && c.second == 0 && c.minute == 0 {
			delete(l.clients, address)
		}
	}
	for address, c := range l.clients { // all are busy: some lose what they owe
		if len(l.clients) < maxClients*3/4 {
			return
		}
		if c.open == 0 {
			delete(l.clients, address)
		}
	}
}

// limiter returns that of an object, which is kept while its bounds are the same.
func (p *Proxy) limiter(object string, from *table.Limit) *limiter {
	l := p.limiters[object]
	if l == nil || l.from.PerSecond != from.PerSecond || l.from.PerMinute != from.PerMinute || l.from.Connections != from.Connections ||
		l.from.Burst != from.Burst {
		l = &limiter{from: from, clients: map[string]*account{}}
		p.limiters[object] = l
	}
	return l
}

// limited reports whether the request exceeds a bound.
func (x *exchange) limited(p *policy) bool {
	address := x.client()
	if len(p.except) > 0 && within(address, p.except) {
		return false
	}
	if ip, err := netip.ParseAddr(address); err == nil {
		address = sourceOfAddress(ip.Unmap().WithZone("")).String() // of IPv6 all that one machine has
	}
	x.release = p.limiter.acquire(address, time.Now())
	return x.release == nil
}
