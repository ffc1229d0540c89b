// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/rand"
	"errors"
	"time"
)

// maxAttempts limits the number of endpoints that a request tries to connect to.
const maxAttempts = 4

var errNoEndpoints = errors.New("the backend has no endpoints")

// dialError is a failed attempt to connect to an endpoint. No byte of the request was sent.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

// selection has the endpoint of the client's session, and the key by which another endpoint is chosen.
type selection struct {
	key   string    // selects the endpoint by a hash; empty for endpoints in turn
	bound *endpoint // the endpoint of the client's session, before those that key selects; nil for none
}

// balance returns the backend for the request, which is b or the canary. It sets the key that selects
// the endpoint.
func (s *selection) balance(in *request, to *response, r *route, b *backend) *backend {
	p := r.policy
	if p.Affinity != nil {
		if sessions := in.routing.sessions[r.object]; sessions != nil {
			return s.applySession(in, to, sessions, p, b)
		}
	}
	if p.canary != nil && p.canary.selects(in.in, &in.steps) {
		b = &p.canary.backend
	}
	switch {
	case p.Affinity != nil:
		if s.key = in.session(p.Affinity); s.key == "" {
			s.key = rand.Text()
			to.setSession(p.Affinity, s.key)
		}
	case len(p.hashBy) > 0:
		s.key, _ = in.expand(p.hashBy) // "" takes endpoints in turn
	}
	return b
}

// pick returns the next endpoint to try, or nil.
func (s selection) pick(set *endpointSet, tried []*endpoint) *endpoint {
	now := time.Now()
	switch {
	case s.key == "":
		return set.nextInTurn(tried, now)
	case s.bound != nil && len(tried) == 0 && s.bound.tryAcquire(now):
		return s.bound
	}
	return set.nextByHash(s.key, tried, now)
}

// attempt calls try for one endpoint after the other until a connection succeeds, for maxAttempts endpoints at most. It
// ends early when again returns false after a failure.
func (s selection) attempt(set *endpointSet, try func(*endpoint) error, again func() bool) error {
	var array [maxAttempts]*endpoint
	tried := array[:0]
	err := errNoEndpoints
	for len(tried) < maxAttempts {
		e := s.pick(set, tried)
		if e == nil {
			return err
		}
		tried = append(tried, e)
		if err = try(e); err == nil {
			e.connected()
			return nil
		}
		var failure *dialError
		if !errors.As(err, &failure) || !again() {
			return err
		}
	}
	return err
}
