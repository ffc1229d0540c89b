// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	crand "crypto/rand"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/coracle-k8s/coracle/ingress/expression"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// canary is a compiled table.Canary.
type canary struct {
	*table.Canary
	name    string // of the backend
	backend backend
	pattern *pattern // nil for none
}

func (p *Proxy) compileCanary(from *table.Canary) (*canary, error) {
	out := &canary{Canary: from, name: from.Backend.Key()}
	var err error
	if from.WeightTotal < 1 {
		return nil, fmt.Errorf("the total weight of a canary is %d", from.WeightTotal)
	}
	if from.HeaderPattern != "" {
		if out.pattern, err = p.patternOf(from.HeaderPattern, expression.Anywhere); err != nil {
			return nil, fmt.Errorf("reading the pattern of a canary: %w", err)
		}
	}
	out.backend, err = p.compileBackend(from.Backend)
	return out, err
}

// selects reports whether the request goes to the canary: by the header, else by the cookie, else at random. A header
// that is too long for the rest of the request's steps selects no canary.
func (c *canary) selects(in *http.Request, from *steps) bool {
	if values := in.Header.Values(c.Header); c.Header != "" && len(values) > 0 {
		switch said := values[0]; {
		case c.HeaderValue != "":
			if said == c.HeaderValue {
				return true
			}
		case c.pattern != nil:
			v := c.pattern.compare(said, from)
			from.finish()
			switch v {
			case matches:
				return true
			case undecided:
				return false
			}
		case said == "always":
			return true
		case said == "never":
			return false
		}
	}
	if c.Cookie != "" {
		if said, err := in.Cookie(c.Cookie); err == nil && said.Value == "always" {
			return true
		} else if err == nil && said.Value == "never" {
			return false
		}
	}
	return c.Weight > 0 && rand.N(c.WeightTotal) < c.Weight
}

// balance returns the backend for the request, which is b or the canary. It sets the key that selects
// the endpoint.
func (x *exchange) balance(r *route, b *backend) *backend {
	p := r.policy
	if p.Affinity != nil {
		if s := x.routing.sessions[r.object]; s != nil {
			return x.join(s, p, b)
		}
	}
	if p.canary != nil && p.canary.selects(x.in, &x.steps) {
		b = &p.canary.backend
	}
	switch {
	case p.Affinity != nil:
		if x.selection.key = x.session(p.Affinity); x.selection.key == "" {
			x.selection.key = crand.Text()
			x.setSession(p.Affinity, x.selection.key)
		}
	case len(p.hashBy) > 0:
		x.selection.key, _ = x.expand(p.hashBy) // "" takes endpoints in turn
	}
	return b
}

// rank returns the endpoint of highest, as long as no other request tries it after a failure.
func (s *endpointSet) rank(key string, tried []*endpoint, now time.Time) *endpoint {
	for {
		if e := s.highest(key, tried, now); e == nil || e.paused(now) || e.take(now) {
			return e
		}
	}
}

// highest returns, of the endpoints not tried yet, the one with the highest hash of its address and a key (D. Thaler
// and C. Ravishankar, 1998: when an endpoint is removed, only its keys move). Endpoints whose last connection attempt
// failed come after the others. It returns nil when all were tried.
func (s *endpointSet) highest(key string, tried []*endpoint, now time.Time) *endpoint {
	var best, second *endpoint
	var bestHash, secondHash uint64
	for _, e := range s.all() {
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
