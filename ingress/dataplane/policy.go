// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/ingress/variable"
)

// policy is a compiled table.Policy.
type policy struct {
	*table.Policy
	location                 variable.Text // of Redirect
	allow                    []netip.Prefix
	deny                     []netip.Prefix
	external                 *external // nil for none
	limiter                  *limiter  // nil for none
	except                   []netip.Prefix
	hashBy                   variable.Text
	canary                   *canary       // nil for none
	users                    *userSet      // nil without basic authentication
	path                     *pathChange   // of the request; nil for none
	redirectPath             *pathChange   // of Redirect; nil for none
	request                  *modification // of headers; nil for none
	response                 *modification
	mirrors                  []*mirror
	clients                  *clientVerification // nil where clients need no certificate
	fallback                 *fallback           // nil for none
	locationChange           *replacement        // of Location; nil for none
	cookieDomain, cookiePath *replacement
	longest                  time.Duration // time of a request; 0 for no limit
}

// compilePolicy compiles a policy. An error closes the route.
func (c compiler) compilePolicy(object string, from *table.Policy) (*policy, error) {
	out := &policy{Policy: from}
	var err error
	if r := from.Redirect; r != nil {
		if r.Status < 300 || r.Status > 308 {
			return nil, fmt.Errorf("%d is not the status of a redirect", r.Status)
		}
		if out.location, err = variable.Parse(r.Location); err != nil {
			return nil, fmt.Errorf("reading the target of a redirect: %w", err)
		}
		if out.redirectPath, err = compilePathChange(r.Path); err != nil {
			return nil, err
		}
	}
	if err = c.compileChanges(out); err != nil {
		return nil, err
	}
	if from.Clients != nil {
		if out.clients, err = c.compileClients(from.Clients); err != nil {
			return nil, err
		}
	}
	if out.allow, err = parseNetworks(from.Allow); err != nil {
		return nil, err
	}
	if out.deny, err = parseNetworks(from.Deny); err != nil {
		return nil, err
	}
	if out.hashBy, err = variable.Parse(from.HashBy); err != nil {
		return nil, fmt.Errorf("reading what endpoints are chosen by: %w", err)
	}
	if from.Canary != nil {
		if out.canary, err = c.compileCanary(from.Canary); err != nil {
			return nil, err
		}
	}
	if from.Limit != nil {
		if out.except, err = parseNetworks(from.Limit.Except); err != nil {
			return nil, err
		}
		out.limiter = c.limiter(object, from.Limit)
	}
	if from.Basic != nil {
		out.users = objectOf(c.users, from.Basic.Users)
	}
	if from.External != nil {
		if out.external, err = c.compileExternal(from.External); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// applyPolicy does what the route's policy says, in the order of nginx' phases: redirects are sent before access is
// checked.
func (x *exchange) applyPolicy(r *route) {
	p := r.policy
	x.policy = p
	if p.clients != nil && !x.authentication.certify(p.clients) {
		return
	}
	if p.CORS != nil && x.preflight(p.CORS) {
		return
	}
	switch {
	case p.AppRoot != "" && x.path.match == "/":
		x.redirect(http.StatusFound, x.scheme+"://"+x.in.Host+p.AppRoot)
		return
	case p.Redirect != nil:
		target, ok := x.expand(p.location)
		if !ok {
			x.tooLong()
			return
		}
		if len(p.location) == 0 {
			target = x.location(p.Redirect, p.redirectPath, r)
		}
		x.redirect(p.Redirect.Status, target)
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
	if !x.authentication.access(r) {
		return
	}
	if p.Rewrite != "" && !x.rewrite(r) {
		return
	}
	if p.path != nil {
		x.path.forward = p.path.apply(x.path, r)
	}
	x.forward(r)
}

// markInUse records, for a sweep, that the objects which the policy holds are in use.
func (p *policy) markInUse(sweep uint64) {
	if p.canary != nil {
		p.canary.backend.markInUse(sweep)
		p.canary.pattern.marked(sweep)
	}
	for _, m := range p.mirrors {
		m.backend.markInUse(sweep)
	}
	if p.clients != nil {
		p.clients.authorities.lastSweep = sweep
		p.clients.subject.marked(sweep)
	}
	if p.fallback != nil {
		p.fallback.backend.markInUse(sweep)
	}
	if p.limiter != nil {
		p.limiter.lastSweep = sweep
	}
	if p.users != nil {
		p.users.lastSweep = sweep
	}
	if p.external != nil && p.external.endpoints != nil {
		p.external.endpoints.lastSweep = sweep
	}
}

func (x *exchange) changeRequestHeaders(h http.Header) {
	p := x.policy
	if p.external != nil {
		x.authentication.grant(p.external, h)
	}
	if p.ForwardedPrefix != "" {
		h["X-Forwarded-Prefix"] = []string{p.ForwardedPrefix}
	}
	if p.clients != nil {
		p.clients.present(&x.request, x.authentication.verified, h)
	}
	p.request.apply(h)
}

// rename sets the Host header of a request to a backend.
func (p *policy) rename(out *http.Request) {
	if p.UpstreamHost != "" {
		out.Host = p.UpstreamHost
	}
	if p.request != nil && p.request.host != "" {
		out.Host = p.request.host
	}
}

// compileChanges compiles the changes of requests and responses, the mirrors and the time-outs.
func (c compiler) compileChanges(to *policy) (err error) {
	if to.path, err = compilePathChange(to.Path); err != nil {
		return err
	}
	if to.request, err = compileHeaders(to.RequestHeaders, true); err != nil {
		return err
	}
	if to.response, err = compileHeaders(to.ResponseHeaders, false); err != nil {
		return err
	}
	for i := range to.Mirrors {
		m, err := c.compileMirror(&to.Mirrors[i])
		if err != nil {
			return err
		}
		to.mirrors = append(to.mirrors, m)
	}
	if to.Fallback != nil {
		if to.fallback, err = c.compileFallback(to.Fallback); err != nil {
			return err
		}
	}
	if to.locationChange, err = compileReplacement(to.Location); err != nil {
		return err
	}
	if to.cookieDomain, err = compileReplacement(to.CookieDomain); err != nil {
		return err
	}
	if to.cookiePath, err = compileReplacement(to.CookiePath); err != nil {
		return err
	}
	for _, millis := range []int{to.RequestMillis, to.BackendMillis} {
		// Only dials are repeated, so that a backend has about as long as the request.
		if d := time.Duration(millis) * time.Millisecond; d > 0 && (to.longest == 0 || d < to.longest) {
			to.longest = d
		}
	}
	return nil
}

func parseNetworks(all []string) ([]netip.Prefix, error) {
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
