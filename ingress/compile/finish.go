// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// challengePath is the prefix of the paths of ACME, which are neither redirected nor authenticated, and open to all
// clients.
const challengePath = "/.well-known/acme-challenge"

// length returns the text whose length orders routes.
func (r *route) length() string {
	if r.Kind == table.PathRegex || r.Kind == table.PathRegexFold {
		return r.written
	}
	return r.Path
}

// rewrites reports whether the route has a rewrite-target, by ingress-nginx's definition.
func (r *route) rewrites() bool {
	return r.options.policy.Rewrite != "" && r.options.policy.Rewrite != r.written
}

// ownRegex reports whether the path is an expression although the class is not nginx.
func (r *route) ownRegex() bool {
	o := r.options
	return !o.nginx && !r.fallback && r.Kind != table.PathExact && (o.useRegex || o.policy.Rewrite != "") &&
		(r.specific || plainPrefix(r.written) != r.written)
}

// policy sets the route's policy: that of its Ingress, with what applies to the route.
func (r *route) policy() {
	p := r.options.policy
	p.Canary, p.Fallback = r.canary, r.fallen
	if p.Clients == nil {
		p.Clients = r.clients
	}
	if r.fallback {
		p.Rewrite = ""
	}
	r.headers.setHeaders(&p)
	if r.options.global && hasAnyPrefix(r.written, r.options.defaults.noAuth) {
		p.External = nil
	}
	if r.challenge() {
		p.Basic, p.External, p.Clients, p.Redirect, p.AppRoot = nil, nil, nil, nil, ""
		p.Allow, p.Deny, p.SatisfyAny, p.Limit = nil, nil, false, nil // authorities connect from any address, and from several at a time
	}
	if !reflect.ValueOf(p).IsZero() {
		r.Policy = &p
	}
}

// challenge reports whether the route is only for challenges of ACME.
func (r *route) challenge() bool {
	rest, ok := strings.CutPrefix(r.written, challengePath)
	return ok && (rest == "" || rest[0] == '/') && !strings.Contains(rest, "|")
}

// finishHost sets those fields of a host's routes that depend on the other routes of the host, and sorts the routes.
func (c *compiler) finishHost(name string, h *host) {
	for _, r := range h.routes {
		h.regex = h.regex || r.options.nginx && !r.fallback && (r.options.useRegex || r.rewrites())
	}
	h.stream, h.wantsClientCert = c.stream(name, h), c.shareClients(h)
	own := slices.Clone(h.routes) // without those that slash adds
	for _, r := range own {
		if !r.challenge() && !hasAnyPrefix(r.written, r.options.defaults.noRedirect) {
			r.RedirectHTTPS = r.options.redirectOf(name != "" && (h.secure || h.stream != nil))
		}
		switch {
		case r.fallback:
		case r.options.nginx && h.regex:
			c.makeExpression(r, table.PathRegexFold)
		case r.ownRegex():
			c.makeExpression(r, table.PathRegex)
		case r.options.nginx:
			h.slash(r)
		}
	}
	if name == "" {
		c.boundShared(h)
	}
	for _, r := range own {
		if r.Refused == "" && !(r.options.plain && r.canary == nil && r.clients == nil && r.headers == nil) {
			r.policy()
		}
	}
	slices.SortStableFunc(h.routes, compareRoutes)
	c.findCostly(name, h)
	c.findShadowed(name, h)
}

// plainPrefix returns the beginning of an expression that consists of literal characters.
func plainPrefix(text string) string {
	at := strings.IndexAny(text, `\.+*?()|[]{}^$`)
	switch {
	case at < 0:
		return text
	case at > 0 && strings.IndexByte("*?{", text[at]) >= 0: // the last byte is optional
		at--
	}
	return text[:at]
}

// slash adds a redirect from the path without a final slash to the route's path, as nginx does, unless another route
// has exactly that path.
func (h *host) slash(r *route) {
	path, ok := strings.CutSuffix(r.written, "/")
	at := routeKey{path: path, kind: table.PathExact}
	if _, taken := h.ownerOfRoute[at]; !ok || path == "" || taken {
		return
	}
	h.ownerOfRoute[at] = r.Object
	redirect := *r
	redirect.Route = table.Route{
		Path: path, Kind: table.PathExact, Object: r.Object, Refused: r.Refused, RedirectHTTPS: r.RedirectHTTPS,
		Policy: &table.Policy{Redirect: &table.Redirect{Status: http.StatusMovedPermanently,
			Location: "$scheme://$http_host$uri/$is_args$args"}},
	}
	h.routes = append(h.routes, &redirect)
}

var dnsName = regexp.MustCompile(`^(\*\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)

// names adds the hosts that annotations name. Hosts of rules have precedence.
func (c *compiler) names() {
	owner := map[string]string{}
	for _, a := range c.ingresses {
		aliases := a.options.aliases
		for _, rule := range a.ing.Spec.Rules {
			name, ok := hostName(rule.Host)
			h := c.hosts[name]
			if !ok || h == nil {
				continue
			}
			for _, text := range aliases {
				c.alias(a, text, h, owner)
			}
			aliases = nil // aliases are names of the first host
			if a.options.www && a.options.refused == "" && name != "" && !strings.HasPrefix(name, "*.") {
				c.www(a.ing, name, h)
			}
		}
	}
}

// alias adds another name of a host. It serves only the routes and the certificate of the Ingress' own namespace: a
// tenant that shares a host may not publish other tenants' routes at names that these have not chosen.
func (c *compiler) alias(a annotatedIngress, text string, h *host, owner map[string]string) {
	name, ok := hostName(text)
	switch {
	case !ok || !dnsName.MatchString(name):
		c.find(a.ing, Finding{ReasonBadHost, nginxPrefix + "server-alias", fmt.Sprintf(
			"the server-alias %.100q is no DNS name: it is left out", text)})
		return
	case owner[name] == a.options.object:
		return
	case c.hosts[name] != nil:
		c.find(a.ing, Finding{ReasonPathTaken, nginxPrefix + "server-alias", fmt.Sprintf(
			"the server-alias %q is a host already: it is left out", name)})
		return
	case !c.mayHaveHost(a.ing, name):
		return
	}
	other, cost := &host{namespace: a.ing.Namespace, wantsClientCert: h.wantsClientCert}, 0
	for _, r := range h.routes {
		if r.ing != nil && r.ing.Namespace == a.ing.Namespace {
			other.routes = append(other.routes, r)
			cost += r.options.routeCost(r.Path) + r.headers.memoryCost() + textFactor*r.sharedBytes
		}
	}
	if strings.HasPrefix(h.certificate, table.CertificateKey(a.ing.Namespace, "")) {
		other.certificate = h.certificate
	}
	if s := h.stream; s != nil && len(s.Backends) > 0 && s.Backends[0].Namespace == a.ing.Namespace {
		other.stream = s
	}
	if !c.reserve(a.ing.Namespace, cost) {
		c.find(a.ing, tooLarge(a.ing.Namespace, "names of server-alias are left out"))
		return
	}
	c.hosts[name], owner[name] = other, a.options.object
}

// www redirects to a host from the same name with www., or without it.
func (c *compiler) www(ing *networkingv1.Ingress, name string, h *host) {
	other, ok := strings.CutPrefix(name, "www.")
	if !ok {
		other = "www." + name
	}
	if c.hosts[other] != nil || len(h.routes) == 0 || !c.mayHaveHost(ing, other) {
		return
	}
	certificates := c.certificatesOf(ing)
	certificate := c.certificateFor(ing, certificates, other)
	if certificate == "" && (c.s.Secrets == nil || c.s.Memory.certificateOf(c.s.Secrets[h.secret]).isFor(other)) {
		certificate = h.certificate
	}
	if certificate == "" && h.certificate != "" && certificates.certificateOf(other).Name == "" {
		c.find(ing, Finding{ReasonSecret, nginxPrefix + "from-to-www-redirect", fmt.Sprintf("there is no certificate for %s, so that clients "+
			"by https see the default one and not the redirect: list it in spec.tls, with a Secret whose certificate is for it, too", other)})
	}
	r := &route{Route: table.Route{
		Path: "/", Kind: table.PathPrefix, Object: h.routes[0].Object,
		Policy: &table.Policy{Redirect: &table.Redirect{Status: http.StatusPermanentRedirect, Location: "$scheme://" + name +
			"$request_uri"}},
	}}
	c.hosts[other] = &host{namespace: h.namespace, certificate: certificate, routes: []*route{r}}
}
