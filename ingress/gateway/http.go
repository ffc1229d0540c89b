// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"time"

	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/coracle-k8s/coracle/ingress/expression"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/convert"
)

// Ranks of kinds of paths. Lower ranks have precedence.
const (
	rankExact = iota
	rankRegex
	rankPrefix
)

// unsupportedValue returns the problem of a value that is not supported.
func unsupportedValue(format string, args ...any) problem {
	return problem{string(gatewayv1.RouteReasonUnsupportedValue), fmt.Sprintf(format, args...)}
}

// incompatibleFilters returns the problem of filters that cannot be combined.
func incompatibleFilters(format string, args ...any) problem {
	return problem{string(gatewayv1.RouteReasonIncompatibleFilters), fmt.Sprintf(format, args...)}
}

// httpRules reads the rules of an HTTPRoute.
func (c *compiler) httpRules(r *route, rules []gatewayv1.HTTPRouteRule) {
	found := c.s.Memory.matchesOf(r.object, len(rules), func(i int, steps *int) ([]match, problem) {
		return httpMatches(rules[i].Matches, steps)
	})
	r.read(found, len(rules), func(i int) (rule, problem) { return c.httpRule(r, &rules[i]) })
}

func (r *route) read(found ruleMatches, rules int, read func(i int) (rule, problem)) {
	if found.tooLarge {
		r.invalid = firstProblem(r.invalid, problem{
			"TooLarge", fmt.Sprintf("the expressions of the route have more than %d steps, which is more than one namespace may have",
				maxSteps),
		})
		return
	}
	var flaws []problem
	for i := range rules {
		out, flaw := read(i)
		if out.matches = found.rules[i]; !found.flaws[i].ok() {
			flaw = found.flaws[i] // no match says which requests the rule is for
		}
		r.add(out, flaw)
		flaws = append(flaws, flaw)
	}
	r.judge(flaws)
}

// add adds a rule. A rule that cannot be served answers its requests with an error. Other rules, which may restrict
// less, must not get these requests.
func (r *route) add(out rule, flaw problem) {
	if !flaw.ok() {
		out.backends, out.policy = []table.Backend{{Weight: 1, Invalid: flaw.message}}, table.Policy{}
	}
	r.rules = append(r.rules, out)
}

// judge sets the problems of the route that follow from the flaws of its rules.
func (r *route) judge(flaws []problem) {
	var texts []string
	var some problem
	for i, f := range flaws {
		if !f.ok() {
			texts = append(texts, fmt.Sprintf("Dropped Rule %d: %s", i+1, f.message))
			some = firstProblem(some, f)
		}
	}
	switch {
	case len(texts) == 0:
	case len(texts) == len(flaws):
		r.invalid = firstProblem(r.invalid, problem{some.reason, strings.Join(texts, "; ")})
	default:
		r.partialProblem = problem{string(gatewayv1.RouteReasonUnsupportedValue), strings.Join(texts, "; ")}
	}
}

// httpRule reads the policy and the backends of a rule.
func (c *compiler) httpRule(r *route, spec *gatewayv1.HTTPRouteRule) (out rule, flaw problem) {
	flaw = c.httpFilters(r, spec, &out.policy)
	if spec.Timeouts != nil {
		request, p := readMillis(spec.Timeouts.Request)
		backend, q := readMillis(spec.Timeouts.BackendRequest)
		out.policy.RequestMillis, out.policy.BackendMillis = request, backend
		flaw = firstProblem(flaw, p, q)
	}
	if out.policy.Redirect != nil {
		return out, flaw
	}
	refs := convert.Slice(spec.BackendRefs, func(b gatewayv1.HTTPBackendRef) gatewayv1.BackendRef { return b.BackendRef })
	var p problem
	out.backends, p = c.backends(r, refs, func(i int, b *table.Backend) {
		flaw = firstProblem(flaw, backendFilters(spec.BackendRefs[i].Filters, b))
	})
	r.resolved = firstProblem(r.resolved, p)
	return out, flaw
}

// readMillis reads a timeout, in milliseconds.
func readMillis(d *gatewayv1.Duration) (int, problem) {
	if d == nil {
		return 0, problem{}
	}
	t, err := time.ParseDuration(string(*d))
	if err != nil || t < 0 {
		return 0, unsupportedValue("the time-out %q is no duration", *d)
	}
	return int((t + time.Millisecond - 1) / time.Millisecond), problem{}
}

// httpMatches reads the matches of a rule, and adds the steps of their expressions. It ends when there are more than
// maxSteps.
func httpMatches(specs []gatewayv1.HTTPRouteMatch, steps *int) (out []match, flaw problem) {
	if len(specs) == 0 {
		specs = []gatewayv1.HTTPRouteMatch{{}}
	}
	for _, spec := range specs {
		m := match{}
		if flaw = m.path(spec.Path); !flaw.ok() {
			return nil, flaw
		}
		m.Method = string(ptr.Deref(spec.Method, ""))
		for _, h := range spec.Headers {
			if flaw = m.header(string(h.Name), string(ptr.Deref(h.Type, gatewayv1.HeaderMatchExact)), h.Value); !flaw.ok() {
				return nil, flaw
			}
		}
		for _, q := range spec.QueryParams {
			if flaw = m.condition(&m.Query, "query parameter", string(q.Name), string(ptr.Deref(q.Type, gatewayv1.QueryParamMatchExact)),
				q.Value, false); !flaw.ok() {
				return nil, flaw
			}
		}
		if m.Method != "" {
			m.second = 1
		}
		m.headers, m.query = len(m.Headers), len(m.Query)
		out = append(out, m)
		if *steps += m.steps; *steps > maxSteps {
			break
		}
	}
	return out, problem{}
}

func (m *match) path(spec *gatewayv1.HTTPPathMatch) problem {
	kind, value := gatewayv1.PathMatchPathPrefix, "/"
	if spec != nil {
		kind, value = ptr.Deref(spec.Type, kind), ptr.Deref(spec.Value, value)
	}
	if kind != gatewayv1.PathMatchRegularExpression && !strings.HasPrefix(value, "/") {
		return unsupportedValue("the path %.100q does not begin with a slash", value)
	}
	switch kind {
	case gatewayv1.PathMatchExact:
		m.Kind, m.Path, m.rank = table.PathExact, value, rankExact
	case gatewayv1.PathMatchPathPrefix: // /a and /a/ match the same requests
		m.Kind, m.Path, m.rank = table.PathPrefix, "/"+strings.Trim(value, "/"), rankPrefix
	case gatewayv1.PathMatchRegularExpression:
		if flaw := m.expression("path", value, "^(?:"+value+")$"); !flaw.ok() {
			return flaw
		}
		m.rank = rankRegex
	default:
		return unsupportedValue("the type %q of a path is not known", kind)
	}
	m.length = len(m.Path)
	return problem{}
}

// expression sets the match's path to an expression that contains the expression value.
func (m *match) expression(of, value, path string) problem {
	if err := check(value); err != nil {
		return noExpression(of, value, err)
	}
	if err := m.charge(path, expression.Prefix); err != nil {
		return noExpression(of, value, err)
	}
	m.Kind, m.Path = table.PathRegex, path
	return problem{}
}

func noExpression(of, value string, err error) problem {
	return unsupportedValue("the %s %.100q cannot be served as an expression of RE2's, which has no lookaheads and no back references: %.200v",
		of, value, err)
}

func (m *match) header(name, kind, value string) problem {
	return m.condition(&m.Headers, "header", name, kind, value, true)
}

// condition adds a condition. If there is one of the same name already, it adds none.
func (m *match) condition(to *[]table.Condition, of, name, kind, value string, fold bool) problem {
	for _, have := range *to {
		if have.Name == name || fold && strings.EqualFold(have.Name, name) {
			return problem{}
		}
	}
	switch kind {
	case string(gatewayv1.HeaderMatchExact):
		*to = append(*to, table.Condition{Name: name, Value: value})
	case string(gatewayv1.HeaderMatchRegularExpression):
		if err := m.charge(value, expression.Whole); err != nil {
			return noExpression(of, value, err)
		}
		*to = append(*to, table.Condition{Name: name, Value: value, Regex: true})
	default:
		return unsupportedValue("the type %q of a %s is not known", kind, of)
	}
	return problem{}
}

func (c *compiler) httpFilters(r *route, spec *gatewayv1.HTTPRouteRule, out *table.Policy) (flaw problem) {
	seen := map[gatewayv1.HTTPRouteFilterType]bool{}
	for i := range spec.Filters {
		f := &spec.Filters[i]
		if seen[f.Type] && f.Type != gatewayv1.HTTPRouteFilterRequestMirror {
			return incompatibleFilters("the filter %s is there twice", f.Type)
		}
		seen[f.Type] = true
		switch {
		case f.Type == gatewayv1.HTTPRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
			out.RequestHeaders = headersOf(f.RequestHeaderModifier)
		case f.Type == gatewayv1.HTTPRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
			out.ResponseHeaders = headersOf(f.ResponseHeaderModifier)
		case f.Type == gatewayv1.HTTPRouteFilterRequestMirror && f.RequestMirror != nil:
			c.mirror(r, f.RequestMirror, out)
		case f.Type == gatewayv1.HTTPRouteFilterRequestRedirect && f.RequestRedirect != nil:
			out.Redirect, flaw = redirectOf(f.RequestRedirect, spec.Matches)
		case f.Type == gatewayv1.HTTPRouteFilterURLRewrite && f.URLRewrite != nil:
			out.UpstreamHost = string(ptr.Deref(f.URLRewrite.Hostname, ""))
			out.Path, flaw = pathChange(f.URLRewrite.Path, spec.Matches)
		case f.Type == gatewayv1.HTTPRouteFilterCORS && f.CORS != nil:
			out.CORS = corsOf(f.CORS)
		default:
			return unsupportedValue("the filter %s is not served", f.Type)
		}
		if !flaw.ok() {
			return flaw
		}
	}
	if seen[gatewayv1.HTTPRouteFilterURLRewrite] && seen[gatewayv1.HTTPRouteFilterRequestRedirect] {
		return incompatibleFilters("the filters URLRewrite and RequestRedirect cannot be together")
	}
	if len(spec.BackendRefs) > 0 && seen[gatewayv1.HTTPRouteFilterRequestRedirect] {
		return incompatibleFilters("the filter RequestRedirect and backendRefs cannot be together")
	}
	return problem{}
}

func backendFilters(filters []gatewayv1.HTTPRouteFilter, b *table.Backend) problem {
	for i := range filters {
		f := &filters[i]
		switch {
		case f.Type == gatewayv1.HTTPRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil && b.RequestHeaders == nil:
			b.RequestHeaders = headersOf(f.RequestHeaderModifier)
		case f.Type == gatewayv1.HTTPRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil && b.ResponseHeaders == nil:
			b.ResponseHeaders = headersOf(f.ResponseHeaderModifier)
		default:
			return unsupportedValue("the filter %s of a backend is not served, or there twice: RequestHeaderModifier and "+
				"ResponseHeaderModifier are served once", f.Type)
		}
	}
	return problem{}
}

func headersOf(f *gatewayv1.HTTPHeaderFilter) *table.Headers {
	out := &table.Headers{Remove: f.Remove}
	for _, h := range f.Set {
		out.Set = append(out.Set, table.Header{Name: string(h.Name), Value: h.Value})
	}
	for _, h := range f.Add {
		out.Add = append(out.Add, table.Header{Name: string(h.Name), Value: h.Value})
	}
	return out
}

// mirror adds a mirror. A mirror that cannot be used is left out.
func (c *compiler) mirror(r *route, f *gatewayv1.HTTPRequestMirrorFilter, out *table.Policy) {
	b, p := c.backend(r, f.BackendRef)
	r.resolved = firstProblem(r.resolved, p)
	m := table.Mirror{Backend: b, Numerator: 1, Denominator: 1}
	switch {
	case f.Fraction != nil:
		m.Numerator, m.Denominator = int(f.Fraction.Numerator), int(ptr.Deref(f.Fraction.Denominator, 100))
	case f.Percent != nil:
		m.Numerator, m.Denominator = int(*f.Percent), 100
	}
	if p.ok() && m.Numerator > 0 && m.Denominator > 0 {
		out.Mirrors = append(out.Mirrors, m)
	}
}

// redirectOf reads a redirect, without the listener's port.
func redirectOf(f *gatewayv1.HTTPRequestRedirectFilter, matches []gatewayv1.HTTPRouteMatch) (*table.Redirect, problem) {
	out := &table.Redirect{
		Status: ptr.Deref(f.StatusCode, http.StatusFound), Scheme: strings.ToLower(ptr.Deref(f.Scheme, "")),
		Host: string(ptr.Deref(f.Hostname, "")), Port: int(ptr.Deref(f.Port, 0)),
	}
	switch out.Status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return out, unsupportedValue("the status %d of a redirect is not known", out.Status)
	}
	if out.Scheme != "" && out.Scheme != schemeHTTP && out.Scheme != schemeHTTPS {
		return out, unsupportedValue("the scheme %q of a redirect is not known", out.Scheme)
	}
	var flaw problem
	out.Path, flaw = pathChange(f.Path, matches)
	return out, flaw
}

const schemeHTTP, schemeHTTPS = "http", "https"

func portAt(r table.Redirect, l *listener) *table.Redirect {
	scheme := r.Scheme
	if scheme == "" {
		if scheme = schemeHTTP; l.tls() {
			scheme = schemeHTTPS
		}
		r.Port = cmp.Or(r.Port, int(l.spec.Port))
	}
	if scheme == schemeHTTP && r.Port == 80 || scheme == schemeHTTPS && r.Port == 443 {
		r.Port = 0
	}
	return &r
}

func pathChange(f *gatewayv1.HTTPPathModifier, matches []gatewayv1.HTTPRouteMatch) (*table.PathChange, problem) {
	if f == nil {
		return nil, problem{}
	}
	switch {
	case f.Type == gatewayv1.FullPathHTTPPathModifier && f.ReplaceFullPath != nil:
		return &table.PathChange{Value: *f.ReplaceFullPath}, problem{}
	case f.Type == gatewayv1.PrefixMatchHTTPPathModifier && f.ReplacePrefixMatch != nil:
		for _, m := range matches {
			if m.Path != nil && ptr.Deref(m.Path.Type, gatewayv1.PathMatchPathPrefix) != gatewayv1.PathMatchPathPrefix {
				return nil, unsupportedValue("replacePrefixMatch needs matches of the type PathPrefix")
			}
		}
		return &table.PathChange{Prefix: true, Value: *f.ReplacePrefixMatch}, problem{}
	}
	return nil, unsupportedValue("the type %q of a change of a path is not known, or has no value", f.Type)
}

// defaultMaxAge is the time for which browsers cache a response to a preflight request, in seconds.
const defaultMaxAge = 5

func corsOf(f *gatewayv1.HTTPCORSFilter) *table.CORS {
	out := &table.CORS{
		Gateway: true, Methods: joinTexts(f.AllowMethods), Headers: joinTexts(f.AllowHeaders), Expose: joinTexts(f.ExposeHeaders),
		MaxAgeSeconds: int(f.MaxAge), Credentials: ptr.Deref(f.AllowCredentials, false),
	}
	for _, o := range f.AllowOrigins {
		out.Origins = append(out.Origins, string(o))
	}
	if out.MaxAgeSeconds <= 0 {
		out.MaxAgeSeconds = defaultMaxAge
	}
	return out
}

func joinTexts[T ~string](parts []T) string {
	return strings.Join(convert.Slice(parts, func(p T) string { return string(p) }), ", ")
}

// policyAt returns a rule's policy at a listener. It returns nil if the policy changes nothing.
func (r *rule) policyAt(l *listener) *table.Policy {
	p := r.policy
	if p.Redirect != nil {
		p.Redirect = portAt(*p.Redirect, l)
	}
	if len(p.Mirrors) > 0 {
		mirrors := make([]table.Mirror, 0, len(p.Mirrors))
		for _, m := range p.Mirrors {
			m.Backend = withCertificate(m.Backend, l.gateway)
			mirrors = append(mirrors, m)
		}
		p.Mirrors = mirrors
	}
	if reflect.ValueOf(p).IsZero() {
		return nil
	}
	return &p
}
