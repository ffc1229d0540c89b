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
func (r *request) session(a *table.Affinity) string {
	if c, err := r.in.Cookie(a.Cookie); err == nil && len(c.Value) == sessionLength {
		return c.Value
	}
	return ""
}

// setSession sets the client's cookie.
func (w *response) setSession(a *table.Affinity, value string) {
	c := http.Cookie{Name: a.Cookie, Value: value, Path: a.Path, Domain: a.Domain, MaxAge: a.MaxAgeSeconds, HttpOnly: true,
		Secure: a.Secure || w.request.scheme == "https"}
	switch a.SameSite {
	case "lax":
		c.SameSite = http.SameSiteLaxMode
	case "strict":
		c.SameSite = http.SameSiteStrictMode
	case "none":
		c.SameSite = http.SameSiteNoneMode
	}
	w.cookies = append(slices.Clip(w.cookies), c.String())
}

// applySession returns the backend of the client's session, which is b or the canary, and sets s. A client
// without a session, or whose backend or endpoint is gone, begins one.
func (s *selection) applySession(in *request, to *response, sessions *table.Sessions, p *policy, b *backend) *backend {
	value := in.session(p.Affinity)
	s.key = cmp.Or(value, crand.Text())
	if p.canary != nil && !sessions.Canary && p.canary.selects(in.in, &in.steps) {
		if value == "" {
			to.setSession(p.Affinity, s.key)
		}
		return &p.canary.backend // without a change of the client's session with b
	}
	canary := ""
	switch sticky := p.canary != nil && sessions.Canary; {
	case value != "" && s.resume(sessions, b, ""):
		return b
	case sticky && value != "" && s.resume(sessions, &p.canary.backend, p.canary.name):
		return &p.canary.backend
	case sticky && p.canary.selects(in.in, &in.steps):
		b, canary = &p.canary.backend, p.canary.name
	}
	address := ""
	if sessions.Persistent && b != nil && b.endpoints != nil {
		if s.bound = b.endpoints.highestHash(s.key, nil, time.Now()); s.bound != nil {
			address = s.bound.address
		}
	}
	random := s.key[:tagAt]
	to.setSession(p.Affinity, random+tag(sessions, random, canary, address))
	return b
}

// resume reports whether the client's cookie is of a session with a backend. It binds the request to its endpoint.
// canary is "" for the route's own backend.
func (s *selection) resume(sessions *table.Sessions, b *backend, canary string) bool {
	random, its := s.key[:tagAt], s.key[tagAt:]
	if !sessions.Persistent {
		return its == tag(sessions, random, canary, "")
	}
	if b == nil || b.endpoints == nil {
		return false
	}
	for _, e := range b.endpoints.endpoints() {
		if its == tag(sessions, random, canary, e.address) {
			s.bound = e
			return true
		}
	}
	return false
}

// tag returns the text that identifies a backend, or one of its endpoints, in a cookie.
func tag(s *table.Sessions, random, canary, address string) string {
	sum := sha256.Sum256(fmt.Appendf(slices.Clip(s.Key), "%s%s\x00%s", random, canary, address))
	return base32.StdEncoding.EncodeToString(sum[:])[:sessionLength-tagAt]
}
