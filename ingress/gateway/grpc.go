// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
	"regexp"
	"strings"

	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/coracle-k8s/coracle/ingress/expression"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/convert"
)

// grpcRules reads the rules of a GRPCRoute. A call of gRPC is a request for the path /SERVICE/METHOD.
func (c *compiler) grpcRules(r *route, rules []gatewayv1.GRPCRouteRule) {
	found := c.s.Memory.matchesOf(r.object, len(rules), func(i int, steps *int) ([]match, problem) {
		return grpcMatches(rules[i].Matches, steps)
	})
	r.read(found, len(rules), func(i int) (rule, problem) { return c.grpcRule(r, &rules[i]) })
}

func (c *compiler) grpcRule(r *route, spec *gatewayv1.GRPCRouteRule) (out rule, flaw problem) {
	seen := map[gatewayv1.GRPCRouteFilterType]bool{}
	for i := range spec.Filters {
		f := &spec.Filters[i]
		switch {
		case seen[f.Type] && f.Type != gatewayv1.GRPCRouteFilterRequestMirror:
			flaw = firstProblem(flaw, incompatibleFilters("the filter %s is there twice", f.Type))
		case f.Type == gatewayv1.GRPCRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
			out.policy.RequestHeaders = headersOf(f.RequestHeaderModifier)
		case f.Type == gatewayv1.GRPCRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
			out.policy.ResponseHeaders = headersOf(f.ResponseHeaderModifier)
		case f.Type == gatewayv1.GRPCRouteFilterRequestMirror && f.RequestMirror != nil:
			c.mirror(r, f.RequestMirror, &out.policy)
		default:
			flaw = firstProblem(flaw, unsupportedValue("the filter %s is not served", f.Type))
		}
		seen[f.Type] = true
	}
	refs := convert.Slice(spec.BackendRefs, func(b gatewayv1.GRPCBackendRef) gatewayv1.BackendRef { return b.BackendRef })
	var p problem
	out.backends, p = c.backends(r, refs, func(i int, b *table.Backend) {
		var filters []gatewayv1.HTTPRouteFilter // the filters of a GRPCRoute are a subset of these
		for _, f := range spec.BackendRefs[i].Filters {
			filters = append(filters, gatewayv1.HTTPRouteFilter{
				Type: gatewayv1.HTTPRouteFilterType(f.Type), RequestHeaderModifier: f.RequestHeaderModifier,
				ResponseHeaderModifier: f.ResponseHeaderModifier,
			})
		}
		flaw = firstProblem(flaw, backendFilters(filters, b))
	})
	r.resolved = firstProblem(r.resolved, p)
	return out, flaw
}

// grpcMatches reads the matches of a rule, as httpMatches does.
func grpcMatches(specs []gatewayv1.GRPCRouteMatch, steps *int) (out []match, flaw problem) {
	if len(specs) == 0 {
		specs = []gatewayv1.GRPCRouteMatch{{}}
	}
	for _, spec := range specs {
		m := match{}
		if flaw = m.method(spec.Method); !flaw.ok() {
			return nil, flaw
		}
		for _, h := range spec.Headers {
			if flaw = m.header(string(h.Name), string(ptr.Deref(h.Type, gatewayv1.GRPCHeaderMatchExact)), h.Value); !flaw.ok() {
				return nil, flaw
			}
		}
		m.headers = len(m.Headers)
		out = append(out, m)
		if *steps += m.steps; *steps > maxSteps {
			break
		}
	}
	return out, problem{}
}

// method reads the service and method of a match. An exact method of an exact service has precedence, and then longer
// names, whatever their type.
func (m *match) method(spec *gatewayv1.GRPCMethodMatch) problem {
	m.Kind, m.Path, m.rank = table.PathPrefix, "/", rankPrefix
	if spec == nil {
		return problem{}
	}
	service, method := ptr.Deref(spec.Service, ""), ptr.Deref(spec.Method, "")
	m.rank, m.length, m.second = rankPrefix, len(service), len(method)
	const anything = "[^/]+"
	switch ptr.Deref(spec.Type, gatewayv1.GRPCMethodMatchExact) {
	case gatewayv1.GRPCMethodMatchExact:
		switch {
		case strings.Contains(service+method, "/"):
			return unsupportedValue("the service %.100q or the method %.100q has a slash", service, method)
		case service != "" && method != "":
			m.Kind, m.Path, m.rank = table.PathExact, "/"+service+"/"+method, rankExact
		case service != "":
			m.Kind, m.Path = table.PathPrefix, "/"+service
		case method != "":
			m.Kind, m.Path = table.PathRegex, "^/"+anything+"/"+regexp.QuoteMeta(method)+"$"
			if err := m.charge(m.Path, expression.Prefix); err != nil {
				return noExpression("method", method, err)
			}
		}
	case gatewayv1.GRPCMethodMatchRegularExpression:
		if err := check(method); err != nil {
			return noExpression("method", method, err)
		}
		return m.expression("service", service, "^/(?:"+cmp.Or(service, anything)+")/(?:"+cmp.Or(method, anything)+")$")
	default:
		return unsupportedValue("the type %q of a method is not known", *spec.Type)
	}
	return problem{}
}
