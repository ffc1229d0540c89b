// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/http"
	"net/netip"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/ingress/variable"
)

// policy is a compiled table.Policy.
type policy struct {
	*table.Policy
	location variable.Text // of Redirect
	allow    []netip.Prefix
	deny     []netip.Prefix
	external *external // nil without
	limiter  *limiter  // nil without
	except   []netip.Prefix
	hashBy   variable.Text
	canary   *canary  // nil without
	users    *userSet // nil without basic authentication
}

// compilePolicy reads what a route does beyond forwarding; an error closes the route.
func (p *Proxy) compilePolicy(object string, from *table.Policy) (*policy, error) {
	out := &policy{Policy: from}
	var err error
	if r := from.Redirect; r != nil {
		if r.Status < 300 || r.Status > 308 {
			return nil, fmt.Errorf("%d is not the status of a redirect", r.Status)
		}
		if out.location, err = variable.Parse(r.Location); err != nil {
			return nil, fmt.Errorf("reading the target of a redirect: %w", err)
		}
	}
	if out.allow, err = prefixes(from.Allow); err != nil {
		return nil, err
	}
	if out.deny, err = prefixes(from.Deny); err != nil {
		return nil, err
	}
	if out.hashBy, err = variable.Parse(from.HashBy); err != nil {
		return nil, fmt.Errorf("reading what endpoints are chosen by: %w", err)
	}
	if from.Canary != nil {
		if out.canary, err = p.compileCanary(from.Canary); err != nil {
			return nil, err
		}
	}
	if from.Limit != nil {
		if out.except, err = prefixes(from.Limit.Except); err != nil {
			return nil, err
		}
		out.limiter = p.limiter(object, from.Limit)
	}
	if from.Basic != nil {
		out.users = p.userSet(from.Basic.Users)
	}
	if from.External != nil {
		if out.external, err = p.compileExternal(from.External); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// govern does what the route's policy asks for, in the order of nginx' phases: redirects come before access is checked.
func (x *exchange) govern(r *route) {
	p := r.policy
	x.policy = p
	if p.CORS != nil && x.preflight(p.CORS) {
		return
	}
	switch {
	case p.AppRoot != "" && x.path.match == "/":
		x.redirect(http.StatusFound, x.scheme+"://"+x.in.Host+p.AppRoot)
		return
	case p.Redirect != nil:
		x.redirect(p.Redirect.Status, x.expand(p.location))
		return
	}
	if p.limiter != nil && x.limited(p) {
		x.answer(http.StatusServiceUnavailable, "this client asks for more than the route allows")
		return
	}
	if p.BodyLimit > 0 && x.in.ContentLength > p.BodyLimit {
		x.answer(http.StatusRequestEntityTooLarge, "the body of the request is greater than the route allows")
		return
	}
	x.body.limit = p.BodyLimit
	if !x.access(r) {
		return
	}
	if p.Rewrite != "" && !x.rewrite(r) {
		return
	}
	x.forward(r)
}

// mark notes that a sweep found what the policy holds in use.
func (p *policy) mark(sweep uint64) {
	if p.canary != nil {
		p.canary.backend.endpoints.mark = sweep
	}
	if p.limiter != nil {
		p.limiter.mark = sweep
	}
	if p.users != nil {
		p.users.mark = sweep
	}
	if p.external != nil && p.external.endpoints != nil {
		p.external.endpoints.mark = sweep
	}
}

// dress changes the headers of a request on its way to the backend.
func (x *exchange) dress(h http.Header) {
	p := x.policy
	if p.external != nil {
		x.grant(h)
	}
	if p.ForwardedPrefix != "" {
		h["X-Forwarded-Prefix"] = []string{p.ForwardedPrefix}
	}
}

// prefixes reads networks.
func prefixes(all []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range all {
		n, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("reading a network: %w", err)
		}
		out = append(out, n.Masked())
	}
	return out, nil
}
