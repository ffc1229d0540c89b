// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"math"
	"regexp"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/ingress/variable"
)

var (
	cookieName   = regexp.MustCompile(`^[-A-Za-z0-9_.]+$`)
	cookieDomain = regexp.MustCompile(`^[-A-Za-z0-9.]+$`)
	cookiePath   = regexp.MustCompile(`^/[-A-Za-z0-9._~/%!$&'()*+:@]*$`)
)

// isCookieName and isCookieDomain check lengths without the expressions. A repetition of 253 in an expression makes as
// many copies of the repeated expression, and takes 0.3 MB in each process.
func isCookieName(s string) bool { return len(s) <= 128 && cookieName.MatchString(s) }

func isCookieDomain(s string) bool {
	return len(strings.TrimPrefix(s, ".")) <= 253 && cookieDomain.MatchString(s)
}

// affinity reads the annotations that send requests of one client, or with an equal key, to the same endpoint.
func (o *options) affinity() {
	if text, ok := o.annotations["upstream-hash-by"]; ok {
		if _, err := variable.Parse(text); err != nil {
			o.refuseAnnotation("upstream-hash-by", "which cannot be served, since "+err.Error())
		}
		o.policy.HashBy = text
	}
	o.persistent = o.oneOf("affinity-mode", "balanced", "persistent")
	o.legacy = o.oneOf("affinity-canary-behavior", "sticky", "legacy")
	switch o.annotations["affinity"] {
	case "":
		return
	case "cookie":
	default:
		o.refuseAnnotation("affinity", "and cookie alone is served")
	}
	a := &table.Affinity{Cookie: "INGRESSCOOKIE", Path: "/", Domain: o.annotations["session-cookie-domain"]}
	o.policy.Affinity = a
	a.MaxAgeSeconds = o.number("session-cookie-expires", 0, math.MaxInt32, 0)
	a.MaxAgeSeconds = o.number("session-cookie-max-age", 0, math.MaxInt32, a.MaxAgeSeconds)
	o.flag("session-cookie-secure", &a.Secure)
	if name, ok := o.annotations["session-cookie-name"]; ok {
		a.Cookie = name
	}
	if path, ok := o.annotations["session-cookie-path"]; ok {
		a.Path = path
	}
	if !isCookieName(a.Cookie) || !cookiePath.MatchString(a.Path) || a.Domain != "" && !isCookieDomain(a.Domain) {
		o.refuseFor(nginxPrefix+"affinity",
			"the name, the path or the domain of the cookie of %saffinity is none: the Ingress' routes answer 503", nginxPrefix)
	}
	switch same := strings.ToLower(o.annotations["session-cookie-samesite"]); same {
	case "", "lax", "strict", "none":
		a.SameSite = same
	default:
		o.refuseAnnotation("session-cookie-samesite", "which is none of None, Lax and Strict")
	}
}

// oneOf reports whether an annotation has its second value. Without the annotation it has the first.
func (o *options) oneOf(name, first, second string) bool {
	text, ok := o.annotations[name]
	if ok && text != first && text != second {
		o.refuseAnnotation(name, "which is neither "+first+" nor "+second)
	}
	return text == second
}

// sessions adds the sections of the Ingresses whose clients a cookie binds further than to a hash.
func (c *compiler) sessions() error {
	canaries := map[*networkingv1.Ingress]bool{} // of the Ingresses whose routes have a canary: whether it is sticky
	for _, h := range c.hosts {
		for _, r := range h.routes {
			if r.canary != nil {
				sticky, known := canaries[r.ing]
				canaries[r.ing] = (sticky || !known) && !r.legacy && !r.options.legacy
			}
		}
	}
	for _, a := range c.ingresses {
		s := table.Sessions{Persistent: a.options.persistent, Canary: canaries[a.ing]}
		if a.options.policy.Affinity == nil || a.options.refused != "" || !s.Persistent && !s.Canary {
			continue
		}
		if !c.reserve(a.ing.Namespace, routeCost) {
			c.find(a.ing, tooLarge(a.ing.Namespace, "sessions are balanced, and canaries are chosen without regard to them"))
			continue
		}
		key := sha256.Sum256([]byte("sessions of " + a.ing.UID)) // a UID is random, and no client of a route sees it
		s.Key = key[:]
		if err := c.r.Sections.Put(table.SessionsKey(a.options.object), s); err != nil {
			return err
		}
	}
	return nil
}

// canaryOf reads the annotations of a canary Ingress, which gets a fraction of another Ingress' requests.
func (o *options) canaryOf() {
	on := false
	if o.flag("canary", &on); !on {
		return
	}
	c := &table.Canary{
		Header: o.annotations["canary-by-header"], HeaderValue: o.annotations["canary-by-header-value"],
		HeaderPattern: o.expression("canary-by-header-pattern"),
		Cookie:        o.annotations["canary-by-cookie"],
	}
	c.WeightTotal = o.number("canary-weight-total", 1, math.MaxInt32, 100)
	c.Weight = o.number("canary-weight", 0, math.MaxInt32, 0)
	if c.Header != "" && !headerName.MatchString(c.Header) {
		o.refuseAnnotation("canary-by-header", "which is no name of a header")
	}
	if c.Cookie != "" && !isCookieName(c.Cookie) {
		o.refuseAnnotation("canary-by-cookie", "which is no name of a cookie")
	}
	o.canary = c
}

// canaries sets the canary backends of routes that have the host and the path of a canary Ingress. Only an Ingress of
// the same namespace may take requests.
func (c *compiler) canaries() {
	for _, a := range c.ingresses {
		if a.options.canary == nil || a.options.refused != "" || c.closed[a.ing] != "" {
			continue
		}
		for _, rule := range a.ing.Spec.Rules {
			name, ok := hostName(rule.Host)
			if !ok || rule.HTTP == nil {
				continue
			}
			for i := range rule.HTTP.Paths {
				c.canary(a, name, &rule.HTTP.Paths[i])
			}
		}
	}
}

// canary sets the backend for one path of a canary Ingress, at the route with that path.
func (c *compiler) canary(a annotatedIngress, name string, p *networkingv1.HTTPIngressPath) {
	path := cmp.Or(p.Path, "/")
	exact := p.PathType != nil && *p.PathType == networkingv1.PathTypeExact
	var main *route
	if h := c.hosts[name]; h != nil {
		for _, r := range h.routes {
			if !r.fallback && r.ing.Namespace == a.ing.Namespace && r.written == path && (r.Kind == table.PathExact) == exact &&
				len(r.Backends) == 1 {
				main = r
				break
			}
		}
	}
	port, why := portOf(&p.Backend)
	switch {
	case why != "":
	case main == nil:
		why = fmt.Sprintf("no other Ingress of this namespace serves %s at the host %q: this canary gets no requests", path, name)
	case main.canary != nil:
		why = fmt.Sprintf("another canary has %s at the host %q: this one gets no requests", path, name)
	}
	if why != "" {
		c.find(a.ing, Finding{ReasonUnsupported, nginxPrefix + "canary", why})
		return
	}
	one := *a.options.canary
	one.Backend = table.Backend{Namespace: a.ing.Namespace, Service: p.Backend.Service.Name, Port: port,
		Protocol: main.Backends[0].Protocol, TLS: main.Backends[0].TLS}
	main.canary, main.legacy, main.sharedBytes = &one, a.options.legacy, a.options.size
	c.service(a.ing, fieldRules, one.Backend, "its requests answer 503")
}
