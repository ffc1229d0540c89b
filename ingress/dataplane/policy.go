// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/http"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/ingress/variable"
)

// policy is a compiled table.Policy.
type policy struct {
	*table.Policy
	location variable.Text // of Redirect
}

// compilePolicy reads what a route does beyond forwarding; an error closes the route.
func (p *Proxy) compilePolicy(from *table.Policy) (*policy, error) {
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
	return out, nil
}

// govern does what the route's policy asks for, in the order of nginx' phases: redirects come before access is checked.
func (x *exchange) govern(r *route) {
	p := r.policy
	x.policy = p
	switch {
	case p.AppRoot != "" && x.path.match == "/":
		x.redirect(http.StatusFound, x.scheme+"://"+x.in.Host+p.AppRoot)
		return
	case p.Redirect != nil:
		x.redirect(p.Redirect.Status, x.expand(p.location))
		return
	}
	if p.Rewrite != "" && !x.rewrite(r) {
		return
	}
	x.forward(r)
}

// dress changes the headers of a request on its way to the backend.
func (p *policy) dress(h http.Header) {
	if p.ForwardedPrefix != "" {
		h["X-Forwarded-Prefix"] = []string{p.ForwardedPrefix}
	}
}
