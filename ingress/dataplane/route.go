// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"math/bits"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"

	"github.com/coracle-k8s/coracle/ingress/expression"
	"github.com/coracle-k8s/coracle/ingress/table"
)

// routing is the data by which requests are routed. It never changes; Apply replaces it.
type routing struct {
	sites map[string]*siteRoutes
	// accounts answer challenges. They hold the thumbprint of an account's key by host.
	accounts map[string]string
	// sessions holds the table.Sessions, by object.
	sessions map[string]*table.Sessions
	trusted  []netip.Prefix
	proxied  bool           // connections of trusted proxies begin with a header of the PROXY protocol
	cluster  []netip.Prefix // an external host name of a route may not resolve into them
}

// host is a compiled table.Host.
type host struct {
	site, name      string
	namespace       string       // of all routes; empty where there are several
	certificate     *certificate // nil for the proxy's own
	routes          []*route
	stats           *hostStats
	final           bool    // requests that no route matches are not tried at the site's default host
	wantsClientCert bool    // clients are asked for certificates
	anyDepth        bool    // the name is a wildcard for one label or more
	stream          *stream // of a host whose connections are forwarded unread; nil for others
}

// route is a compiled table.Route.
type route struct {
	path  string // normalised; for prefixes without the slash at its end
	exact bool
	text  bool // a prefix that need not end at the end of an element
	// expression matches the beginning of paths; nil for the other kinds.
	expression *pattern
	conditions *conditions // nil for none
	policy     *policy     // nil for none
	pool
	redirect   int
	refused    string
	object     string // the object that the route was made from
	namespace  string // of the object
	challenges bool   // the path is the path of ACME challenges
}

// pool is a set of backends with their weights.
type pool struct {
	backends []backend
	total    uint64 // sum of the weights
	requests atomic.Uint64
}

// noPath is the path of a route whose own path cannot be read. No request has it, so that the other routes of the host
// go on.
const noPath = "\x00"

// backend is a compiled table.Backend.
type backend struct {
	endpoints *endpointSet
	http2     bool        // HTTP/2 only; otherwise HTTP/1.1 only
	tls       bool        // TLS
	client    *backendTLS // the settings of TLS; nil to verify no certificate
	invalid   bool        // requests are answered with an error
	weight    uint64
	request   *modification // of headers; nil for none
	response  *modification
}

// markInUse records, for a sweep, that the objects which the backend holds are in use.
func (b *backend) markInUse(sweep uint64) {
	if b.endpoints != nil {
		b.endpoints.lastSweep = sweep
	}
	if b.client != nil {
		b.client.marked(sweep)
	}
}

// markInUse records, for a sweep, that the backends are in use.
func (p *pool) markInUse(sweep uint64) {
	for i := range p.backends {
		p.backends[i].markInUse(sweep)
	}
}

// find returns the host of a site that serves a name. It returns nil when there is none.
func (r *routing) find(site, name string) *host {
	if s := r.sites[site]; s != nil {
		return s.find(name)
	}
	return nil
}

// route returns the route of a request: the first that matches on the host, else the first that matches on the site's
// default host, unless the host is final. It returns nil when there is none. The verdict about the returned route is
// matches or undecided.
func (s *siteRoutes) route(name, path string, in *http.Request, from *steps) (*route, verdict) {
	h := s.find(name)
	if h == nil {
		return nil, differs
	}
	if found, v := h.match(path, in, from); found != nil || h.name == "" || h.final {
		return found, v
	}
	if h = s.hosts[""]; h != nil {
		return h.match(path, in, from)
	}
	return nil, differs
}

// matchesDecoded reports whether a path of the route would match another object's route with restricted access, if it
// were read as lenient backends read it (lenientPath).
func (s *siteRoutes) matchesDecoded(r *route, name, path string, in *request) bool {
	lenient := lenientPath(path)
	if lenient == path {
		return false
	}
	from := in.newSteps()
	defer from.releaseQueue()
	other, v := s.route(name, lenient, in.in, &from)
	return other != nil && other != r && (v == undecided || other.restricts()) && (other.object != r.object || !r.restricts())
}

func (r *route) restricts() bool {
	p := r.policy
	return r.refused != "" || p != nil && (len(p.allow)+len(p.deny) > 0 || p.users != nil || p.external != nil || p.limiter != nil ||
		p.clients != nil)
}

// match returns the first route that does not differ from a request, with the verdict about it.
func (h *host) match(path string, in *http.Request, from *steps) (*route, verdict) {
	from.host = h
	for _, r := range h.routes {
		if v := r.compare(path, in, from); v != differs {
			return r, v
		}
	}
	return nil, differs
}

// compare compares a request with the route. What costs little is compared first.
func (r *route) compare(path string, in *http.Request, from *steps) verdict {
	if r.expression == nil && !r.matches(path) || r.conditions != nil && !r.conditions.plainMet(in) {
		return differs
	}
	out := matches
	if r.expression != nil {
		out = r.expression.compare(path, from)
	}
	if r.conditions != nil && out != differs {
		if v := r.conditions.patternsMet(in, from); v != matches {
			out = v
		}
	}
	return out
}

// matches reports whether a path without an expression matches.
func (r *route) matches(path string) bool {
	switch {
	case r.exact:
		return path == r.path
	case r.text:
		return strings.HasPrefix(path, r.path)
	}
	return strings.HasPrefix(path, r.path) && (len(path) == len(r.path) || path[len(r.path)] == '/')
}

// choose returns the next backend. Turns are spread in proportion to the weights, by multiples of the
// golden ratio. These leave no gaps and no bunches, and need neither randomness nor a lock. It returns nil when no
// backend has a weight.
func (p *pool) choose() *backend {
	if len(p.backends) == 1 {
		return &p.backends[0]
	}
	if p.total == 0 {
		return nil
	}
	at := spread(&p.requests, p.total)
	for i := range p.backends {
		if at < p.backends[i].weight {
			return &p.backends[i]
		}
		at -= p.backends[i].weight
	}
	return nil
}

// spread returns numbers below total, evenly spread.
func spread(turn *atomic.Uint64, total uint64) uint64 {
	const golden = 0x9E3779B97F4A7C15
	at, _ := bits.Mul64(turn.Add(1)*golden, total)
	return at
}

// compile makes a host of its section. Routes that cannot be read are closed. The error names the first of them.
func (c compiler) compile(site, name string, from *table.Host) (*host, error) {
	h := &host{
		site: site, name: name, wantsClientCert: from.AskClients, final: from.Final || from.Stream != nil, anyDepth: from.AnyDepth &&
			strings.HasPrefix(name, "*."), routes: make([]*route, 0, len(from.Routes)),
	}
	if from.Certificate != "" {
		h.certificate = objectOf(c.certificates, from.Certificate)
	}
	var problem error
	if from.Stream != nil {
		h.stream, problem = c.compileStream(from.Stream)
	}
	for i := range from.Routes {
		r, err := c.compileRoute(&from.Routes[i])
		if err != nil {
			r.refused = err.Error()
			if problem == nil {
				problem = fmt.Errorf("the route %s of %s: %w", from.Routes[i].Path, from.Routes[i].Object, err)
			}
		}
		if i == 0 {
			h.namespace = r.namespace
		} else if h.namespace != r.namespace {
			h.namespace = ""
		}
		h.routes = append(h.routes, r)
	}
	return h, problem
}

// compileRoute always returns a route. With an error, that route has to be closed.
func (c compiler) compileRoute(from *table.Route) (*route, error) {
	r := &route{
		path: noPath, refused: from.Refused, object: from.Object, namespace: namespaceOf(from.Object),
		challenges: strings.HasPrefix(from.Path+"/", table.ChallengesPath),
	}
	err := c.compilePath(r, from)
	if err != nil {
		return r, err
	}
	if r.conditions, err = c.compileConditions(from); err != nil {
		return r, err
	}
	if from.Policy != nil {
		if r.policy, err = c.compilePolicy(from.Object, from.Policy); err != nil {
			return r, err
		}
		if r.expression != nil && r.policy.replacesPrefix() {
			return r, fmt.Errorf("an expression has no prefix that could be replaced")
		}
	}
	switch from.RedirectHTTPS {
	case 0, http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		r.redirect = from.RedirectHTTPS
	default:
		return r, fmt.Errorf("%d is not the status of a redirect", from.RedirectHTTPS)
	}
	return r, c.compilePool(&r.pool, from.Backends)
}

func (c compiler) compilePool(to *pool, from []table.Backend) error {
	to.backends = make([]backend, 0, len(from))
	for _, b := range from {
		one, err := c.compileBackend(b)
		if err != nil {
			return err
		}
		to.backends = append(to.backends, one)
		to.total += one.weight
	}
	return nil
}

func (c compiler) compilePath(r *route, from *table.Route) error {
	if from.Kind == table.PathRegex || from.Kind == table.PathRegexFold {
		form := expression.Prefix
		if from.Kind == table.PathRegexFold {
			form = expression.PrefixFold
		}
		var err error
		if r.expression, err = c.patternOf(from.Path, form); err != nil {
			return fmt.Errorf("the path is no expression: %w", err)
		}
		return nil
	}
	path, err := normalise(from.Path)
	if err != nil || !strings.HasPrefix(from.Path, "/") {
		return fmt.Errorf("%q is not a path that begins with a slash", from.Path)
	}
	r.path = path.match
	switch from.Kind {
	case table.PathExact:
		r.exact = true
	case table.PathText:
		r.text = true
	case table.PathPrefix:
		r.path = strings.TrimSuffix(r.path, "/")
	default:
		r.path = strings.TrimSuffix(r.path, "/")
		return fmt.Errorf("this version of the proxy knows no paths of the kind %q", from.Kind)
	}
	return nil
}

// namespaceOf returns the namespace in kind/namespace/name.
func namespaceOf(object string) string {
	_, rest, _ := strings.Cut(object, "/")
	namespace, _, _ := strings.Cut(rest, "/")
	return namespace
}

func (c compiler) compileBackend(from table.Backend) (backend, error) {
	out := backend{weight: uint64(max(0, from.Weight)), invalid: from.Invalid != ""}
	if out.invalid {
		return out, nil
	}
	out.endpoints = objectOf(c.endpoints, from.Key())
	switch from.Protocol {
	case table.HTTP1:
	case table.H2C:
		out.http2 = true
	case table.HTTPS1:
		out.tls = true
	case table.H2:
		out.http2, out.tls = true, true
	default:
		return out, fmt.Errorf("this version of the proxy knows no backends of the protocol %q", from.Protocol)
	}
	if from.TLS != nil {
		out.client = c.backendTLSOf(from.TLS)
	}
	var err error
	if out.request, err = compileHeaders(from.RequestHeaders, true); err != nil {
		return out, err
	}
	out.response, err = compileHeaders(from.ResponseHeaders, false)
	return out, err
}
