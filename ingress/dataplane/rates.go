// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// maxClients limits how many clients a limiter remembers. When there are more, clients with few requests are evicted.
const maxClients = 16384

// limiter counts the requests of clients at the routes of one object.
type limiter struct {
	limit *table.Limit

	mu      sync.Mutex
	clients map[string]*account
	shared
}

// account is a limiter's state for one address. second and minute are the levels of its two buckets, in requests, at
// the time last. A bucket of golang.org/x/time/rate would take 80 bytes, and all of an account takes 48.
type account struct {
	second, minute float64
	updatedAt      time.Time
	open           int
}

// leak lowers the levels of the buckets by the time since last.
func (l *limiter) leak(c *account, now time.Time) {
	past := now.Sub(c.updatedAt).Seconds()
	c.second = max(0, c.second-past*float64(l.limit.PerSecond))
	c.minute = max(0, c.minute-past*float64(l.limit.PerMinute)/60)
	c.updatedAt = now
}

// acquire returns nil for a request that exceeds a limit. Otherwise release must be called when the request has ended.
func (l *limiter) acquire(address string, now time.Time) (release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.clients[address]
	if c == nil {
		l.evict(now)
		c = &account{updatedAt: now}
		l.clients[address] = c
	}
	l.leak(c, now)
	f := l.limit
	burst := float64(f.Burst)
	if f.Connections > 0 && c.open >= f.Connections || f.PerMinute > 0 && c.minute > burst*float64(f.PerMinute) ||
		f.PerSecond > 0 && c.second > burst*float64(f.PerSecond) {
		return nil
	}
	c.open++
	if f.PerSecond > 0 { // otherwise it would never leak
		c.second++
	}
	if f.PerMinute > 0 {
		c.minute++
	}
	var once sync.Once
	return func() {
		once.Do(func() {
			l.mu.Lock()
			c.open--
			l.mu.Unlock()
		})
	}
}

// evict removes clients when there is no space for one more.
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
	for address, c := range l.clients { // all have counts: evict clients without open requests
		if len(l.clients) < maxClients*3/4 {
			return
		}
		if c.open == 0 {
			delete(l.clients, address)
		}
	}
}

// limiter returns the limiter of an object. It makes a new one when the limits have changed.
func (o *objects) limiter(object string, from *table.Limit) *limiter {
	l := o.limiters[object]
	if l == nil || l.limit.PerSecond != from.PerSecond || l.limit.PerMinute != from.PerMinute || l.limit.Connections != from.Connections ||
		l.limit.Burst != from.Burst {
		l = &limiter{limit: from, clients: map[string]*account{}}
		o.limiters[object] = l
	}
	return l
}

// limited reports whether the request exceeds a limit.
func (x *exchange) limited(p *policy) bool {
	address := x.client()
	if len(p.except) > 0 && inNetworks(address, p.except) {
		return false
	}
	x.releaseLimiter = p.limiter.acquire(x.clientKey(), time.Now())
	return x.releaseLimiter == nil
}
