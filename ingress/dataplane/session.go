// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"cmp"
	crand "crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// A session cookie has sessionLength characters. Where an object has table.Sessions, the first tagAt of them are
// random, and the others are a tag: what served the client, by its hash with the random ones and the secret of the
// section. Each proxy that has the table finds that again, among what the route has now, without state of its own.
// Without the secret no client can make a tag, or learn from one which address it is of.
const sessionLength, tagAt = 26, 13

// applySessions replaces the sessions of an object.
func applySessions(next *routingBuilder, key string, value json.RawMessage, present bool) error {
	if !next.sessionsOwned {
		next.sessionsOwned = true
		if next.sessions = maps.Clone(next.sessions); next.sessions == nil {
			next.sessions = map[string]*table.Sessions{}
		}
	}
	object := strings.TrimPrefix(key, table.KindSessions+"/")
	delete(next.sessions, object)
	if !present {
		return nil
	}
	var from table.Sessions
	if err := json.Unmarshal(value, &from); err != nil {
		return fmt.Errorf("reading the sessions of an object: %w", err)
	}
	next.sessions[object] = &from
	return nil
}

// session returns the value of the client's cookie. It returns "" for a client without one.
func (x *exchange) session(a *table.Affinity) string {
	if c, err := x.in.Cookie(a.Cookie); err == nil && len(c.Value) == sessionLength {
		return c.Value
	}
	return ""
}

// setSession sets the client's cookie.
func (x *exchange) setSession(a *table.Affinity, value string) {
	c := http.Cookie{Name: a.Cookie, Value: value, Path: a.Path, Domain: a.Domain, MaxAge: a.MaxAgeSeconds, HttpOnly: true,
		Secure: a.Secure || x.scheme == "https"}
	switch a.SameSite {
	case "lax":
		c.SameSite = http.SameSiteLaxMode
	case "strict":
		c.SameSite = http.SameSiteStrictMode
	case "none":
		c.SameSite = http.SameSiteNoneMode
	}
	x.cookies = append(slices.Clip(x.cookies), c.String())
}

// join returns the backend of the client's session, which is b or the canary, and sets x.selection. A client
// without a session, or whose backend or endpoint is gone, begins one.
func (x *exchange) join(s *table.Sessions, p *policy, b *backend) *backend {
	value := x.session(p.Affinity)
	x.selection.key = cmp.Or(value, crand.Text())
	if p.canary != nil && !s.Canary && p.canary.selects(x.in, &x.steps) {
		if value == "" {
			x.setSession(p.Affinity, x.selection.key)
		}
		return &p.canary.backend // without a change of the client's session with b
	}
	canary := ""
	switch sticky := p.canary != nil && s.Canary; {
	case value != "" && x.resume(s, b, ""):
		return b
	case sticky && value != "" && x.resume(s, &p.canary.backend, p.canary.name):
		return &p.canary.backend
	case sticky && p.canary.selects(x.in, &x.steps):
		b, canary = &p.canary.backend, p.canary.name
	}
	address := ""
	if s.Persistent && b != nil && b.endpoints != nil {
		if x.selection.bound = b.endpoints.highest(x.selection.key, nil, time.Now()); x.selection.bound != nil {
			address = x.selection.bound.address
		}
	}
	random := x.selection.key[:tagAt]
	x.setSession(p.Affinity, random+tag(s, random, canary, address))
	return b
}

// resume reports whether the client's cookie is of a session with a backend. It binds the request to its endpoint. canary is
// "" for the route's own backend.
func (x *exchange) resume(s *table.Sessions, b *backend, canary string) bool {
	random, its := x.selection.key[:tagAt], x.selection.key[tagAt:]
	if !s.Persistent {
		return its == tag(s, random, canary, "")
	}
	if b == nil || b.endpoints == nil {
		return false
	}
	for _, e := range b.endpoints.all() {
		if its == tag(s, random, canary, e.address) {
			x.selection.bound = e
			return true
		}
	}
	return false
}

// tag returns what stands in a cookie for a backend, or for an endpoint of it.
func tag(s *table.Sessions, random, canary, address string) string {
	sum := sha256.Sum256(fmt.Appendf(slices.Clip(s.Key), "%s%s\x00%s", random, canary, address))
	return base32.StdEncoding.EncodeToString(sum[:])[:sessionLength-tagAt]
}
