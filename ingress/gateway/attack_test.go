// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// accepted is the reason of the condition Accepted of an HTTPRoute at its first parent.
func accepted(t testing.TB, r Result, route string) string {
	t.Helper()
	namespace, name, _ := strings.Cut(route, "/")
	parents := r.HTTPRouteStatus[types.NamespacedName{Namespace: namespace, Name: name}].Parents
	testenv.Require(t, len(parents) != 0, "the route %s has no parent", route)
	for _, c := range parents[0].Conditions {
		if c.Type == string(gatewayv1.RouteConditionAccepted) {
			return c.Reason
		}
	}
	t.Fatalf("the route %s has no condition Accepted", route)
	return ""
}

// TestOneNamespaceDoesNotFillTheTable has a route with 128 matches of 4 KB at 64 listeners, which would be 34 MB of
// text.
func TestOneNamespaceDoesNotFillTheTable(t *testing.T) {
	var objects strings.Builder
	objects.WriteString("kind: Gateway\nmetadata: {namespace: a, name: g}\nspec:\n  gatewayClassName: coracle\n  listeners:\n")
	for i := range 64 {
		fmt.Fprintf(&objects, "  - {name: l%d, port: 80, protocol: HTTP, hostname: h%d.example, allowedRoutes: {namespaces: {from: All}}}\n", i, i)
	}
	for _, route := range []string{"before/r", "greedy/r", "behind/r"} {
		namespace, name, _ := strings.Cut(route, "/")
		fmt.Fprintf(&objects, "---\nkind: HTTPRoute\nmetadata: {namespace: %s, name: %s}\nspec: {parentRefs: [{name: g, namespace: a}], rules: [{}]}\n", namespace, name)
	}
	w := load(t, objects.String())
	for _, r := range w.HTTPRoutes {
		if r.Namespace == "greedy" {
			matches := make([]gatewayv1.HTTPRouteMatch, 128)
			for i := range matches {
				matches[i].Headers = []gatewayv1.HTTPHeaderMatch{{Name: "x", Value: strings.Repeat(string(rune('a'+i%26)), 4096)}}
			}
			r.Spec.Rules[0].Matches = matches
		}
	}
	r := w.settle(t)
	for route, want := range map[string]string{"before/r": "Accepted", "greedy/r": "TooLarge", "behind/r": "Accepted"} {
		testenv.Equal(t, accepted(t, r, route), want, "the route %s is", route)
	}
	if n := r.GatewayStatus[types.NamespacedName{Namespace: "a", Name: "g"}].Listeners[0].AttachedRoutes; n != 2 {
		t.Errorf("%d routes are attached to a listener", n)
	}
	size := 0
	for _, s := range r.Sections {
		size += len(s)
	}
	testenv.True(t, size <= 1<<20, "the table has %d bytes", size)
	w.HTTPRoutes[1].Spec.Hostnames = []gatewayv1.Hostname{"h1.example"}
	testenv.Equal(t, accepted(t, w.settle(t), "greedy/r"), "Accepted", "at one host the route is")
}

// shared is a Gateway for all namespaces, with a route of the namespace shop that has all of its hosts.
const shared = `
kind: Gateway
metadata: {namespace: infra, name: g}
spec:
  gatewayClassName: coracle
  listeners:
  - {name: all, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}
  - {name: some, port: 80, protocol: HTTP, hostname: "*.b.example", allowedRoutes: {namespaces: {from: All}}}
---
kind: HTTPRoute
metadata: {namespace: shop, name: r}
spec: {parentRefs: [{name: g, namespace: infra}], rules: [{}]}
`

// later makes the metadata and the parent of a route of the namespace evil, which is younger than all objects of files.
func later(i int) (metav1.ObjectMeta, gatewayv1.CommonRouteSpec) {
	return metav1.ObjectMeta{Namespace: "evil", Name: fmt.Sprintf("r%d", i), CreationTimestamp: metav1.NewTime(born.Add(time.Hour + time.Duration(i)*time.Second))},
		gatewayv1.CommonRouteSpec{ParentRefs: []gatewayv1.ParentReference{{Name: "g", Namespace: new(gatewayv1.Namespace("infra"))}}}
}

// TestYoungerRoutesDisplaceNone: a route of all hosts takes its part at each host that younger routes name, for which
// these pay.
func TestYoungerRoutesDisplaceNone(t *testing.T) {
	w := load(t, shared)
	for i := range 500 {
		m, common := later(i)
		o := &gatewayv1.HTTPRoute{ObjectMeta: m, Spec: gatewayv1.HTTPRouteSpec{CommonRouteSpec: common, Rules: make([]gatewayv1.HTTPRouteRule, 1)}}
		for j := range 16 {
			o.Spec.Hostnames = append(o.Spec.Hostnames, gatewayv1.Hostname(fmt.Sprintf("h%d.r%d.example", j, i)))
		}
		w.HTTPRoutes = append(w.HTTPRoutes, o)
	}
	r := w.settle(t)
	for route, want := range map[string]string{"shop/r": "Accepted", "evil/r0": "Accepted", "evil/r499": "TooLarge"} {
		testenv.Equal(t, accepted(t, r, route), want, "the route %s is", route)
	}
}

// FuzzYoungest: the youngest route changes nothing for the others, however much it asks for, and what the accepted ones
// take is within bounds.
func FuzzYoungest(f *testing.F) {
	for seed := range uint64(30) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 1))
		w := load(t, shared)
		names := []string{"a.example", "x.a.example", "*.a.example", "b.example", "x.b.example", "*.b.example", "*.x.b.example", "*.example"}
		for i := range 2 + random.IntN(10) {
			m, common := later(i)
			m.Namespace = []string{"evil", "shop", "other"}[random.IntN(3)]
			var hosts []gatewayv1.Hostname
			for range random.IntN(4) {
				hosts = append(hosts, gatewayv1.Hostname(names[random.IntN(len(names))]))
			}
			match := gatewayv1.HTTPHeaderMatch{Name: "x", Value: strings.Repeat("a", 4096)}
			if size := random.IntN(300); size > 0 && random.IntN(3) > 0 {
				rule := gatewayv1.HTTPRouteRule{Matches: make([]gatewayv1.HTTPRouteMatch, size)}
				for j := range rule.Matches {
					rule.Matches[j].Headers = []gatewayv1.HTTPHeaderMatch{match}
				}
				w.HTTPRoutes = append(w.HTTPRoutes, &gatewayv1.HTTPRoute{ObjectMeta: m, Spec: gatewayv1.HTTPRouteSpec{CommonRouteSpec: common, Hostnames: hosts, Rules: []gatewayv1.HTTPRouteRule{rule}}})
			} else {
				w.GRPCRoutes = append(w.GRPCRoutes, &gatewayv1.GRPCRoute{ObjectMeta: m, Spec: gatewayv1.GRPCRouteSpec{CommonRouteSpec: common, Hostnames: hosts, Rules: make([]gatewayv1.GRPCRouteRule, 1)}})
			}
		}
		with := w.settle(t)
		size := 0
		for _, s := range with.Sections {
			size += len(s)
		}
		testenv.True(t, size*textCost <= 2*maxTable, "the table has %d bytes", size)
		last := slices.MaxFunc(slices.Concat(objectsOf(w.HTTPRoutes), objectsOf(w.GRPCRoutes)), compareAge)
		w.HTTPRoutes = slices.DeleteFunc(w.HTTPRoutes, func(o *gatewayv1.HTTPRoute) bool { return metav1.Object(o) == last })
		w.GRPCRoutes = slices.DeleteFunc(w.GRPCRoutes, func(o *gatewayv1.GRPCRoute) bool { return metav1.Object(o) == last })
		without := testenv.Must(Desired(w.State))(t)
		for name, s := range without.HTTPRouteStatus {
			if one, other := asJSON(t, s), asJSON(t, with.HTTPRouteStatus[name]); !bytes.Equal(one, other) {
				t.Errorf("beside the younger %s the HTTPRoute %s is\n%s\nand not\n%s", last.GetName(), name, other, one)
			}
		}
		for name, s := range without.GRPCRouteStatus {
			if one, other := asJSON(t, s), asJSON(t, with.GRPCRouteStatus[name]); !bytes.Equal(one, other) {
				t.Errorf("beside the younger %s the GRPCRoute %s is\n%s\nand not\n%s", last.GetName(), name, other, one)
			}
		}
	})
}

func objectsOf[T metav1.Object](in []T) (out []metav1.Object) {
	for _, o := range in {
		out = append(out, o)
	}
	return out
}

// TestAuthoritiesAreBounded: each order of the same references makes authorities of its own.
func TestAuthoritiesAreBounded(t *testing.T) {
	w := load(t, shared)
	chain, _ := issued(t, "a.example")
	text := string(bytes.Repeat(chain, (64<<10)/len(chain)))
	m, common := later(0)
	route := &gatewayv1.HTTPRoute{ObjectMeta: m, Spec: gatewayv1.HTTPRouteSpec{CommonRouteSpec: common, Rules: make([]gatewayv1.HTTPRouteRule, 1)}}
	w.HTTPRoutes = append(w.HTTPRoutes, route)
	const policies, authorities = 60, 8
	for i := range authorities {
		name := types.NamespacedName{Namespace: "evil", Name: fmt.Sprintf("ca%d", i)}
		w.configMaps[name] = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}, Data: map[string]string{caKey: text}}
	}
	for i := range policies {
		name := types.NamespacedName{Namespace: "evil", Name: fmt.Sprintf("s%d", i)}
		w.services[name] = &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 443}}}}
		p := &gatewayv1.BackendTLSPolicy{ObjectMeta: m}
		p.Name = name.Name
		p.Spec.TargetRefs = []gatewayv1.LocalPolicyTargetReferenceWithSectionName{{LocalPolicyTargetReference: gatewayv1.LocalPolicyTargetReference{Kind: "Service", Name: gatewayv1.ObjectName(name.Name)}}}
		p.Spec.Validation.Hostname = "a.example"
		for j := range authorities {
			if j != i%authorities || i >= authorities { // all but one, then all in different orders
				at := (j*[]int{1, 3, 5, 7}[i/authorities%4] + i) % authorities
				p.Spec.Validation.CACertificateRefs = append(p.Spec.Validation.CACertificateRefs, gatewayv1.LocalObjectReference{Kind: "ConfigMap", Name: gatewayv1.ObjectName(fmt.Sprintf("ca%d", at))})
			}
		}
		w.Policies = append(w.Policies, p)
		ref := gatewayv1.HTTPBackendRef{}
		ref.Name, ref.Port = gatewayv1.ObjectName(name.Name), new(gatewayv1.PortNumber(443))
		route.Spec.Rules[0].BackendRefs = append(route.Spec.Rules[0].BackendRefs, ref)
	}
	r := w.settle(t)
	size := 0
	for key, s := range r.Sections {
		if table.Kind(key) == table.KindAuthorities {
			size += len(s)
		}
	}
	testenv.True(t, size != 0 && size <= maxSecrets/2/secretCost*11/10, "the authorities of one namespace take %d bytes", size)
	testenv.Contains(t, string(r.Sections[table.HostKey(Site("infra", "g", 80), "")]), "more memory in the proxies", "a backend whose authorities are left out is not invalid:")
}

// TestExpressionsOfOneRouteAreBounded: compiling them ends when they are more than its namespace may have.
func TestExpressionsOfOneRouteAreBounded(t *testing.T) {
	w := load(t, oneRoute)
	matches := make([]gatewayv1.HTTPRouteMatch, 128)
	for i := range matches {
		for j := range 16 {
			matches[i].Headers = append(matches[i].Headers, gatewayv1.HTTPHeaderMatch{
				Type: new(gatewayv1.HeaderMatchRegularExpression), Name: gatewayv1.HTTPHeaderName(fmt.Sprintf("h%d", j)), Value: strings.Repeat("[a-z]?", 170),
			})
		}
	}
	read := 0
	(&Memory{current: noCache()}).matchesOf(w.HTTPRoutes[0], 10, func(_ int, steps *int) ([]match, problem) {
		read++
		return httpMatches(matches, steps)
	})
	testenv.Equal(t, read, 1, "rules are read:")
	w.HTTPRoutes[0].Spec.Rules[0].Matches = matches
	testenv.Equal(t, accepted(t, w.settle(t), "a/r"), "TooLarge", "the route is")
}

// TestServiceOfOneGateway: of two Gateways whose Services have one name, the older has it.
func TestServiceOfOneGateway(t *testing.T) {
	name := strings.TrimPrefix(ServiceName("a.b"), "gateway-")
	w := load(t, fmt.Sprintf(`
kind: Gateway
metadata: {namespace: a, name: a.b}
spec: {gatewayClassName: coracle, listeners: [{name: l, port: 80, protocol: HTTP}]}
---
kind: Gateway
metadata: {namespace: a, name: %s}
spec: {gatewayClassName: coracle, listeners: [{name: l, port: 81, protocol: HTTP}]}
`, name))
	for range 10 {
		r := w.settle(t)
		if len(r.Services) != 1 || r.Services[types.NamespacedName{Namespace: "a", Name: "gateway-" + name}].Gateway.Name != "a.b" {
			t.Fatalf("the Services are %+v", r.Services)
		}
		if c := r.GatewayStatus[types.NamespacedName{Namespace: "a", Name: name}].Conditions[0]; c.Status != metav1.ConditionFalse {
			t.Fatalf("the younger Gateway is %+v", c)
		}
	}
}

// An attacker who writes routes has expressions that take seconds, or that mean something else inside another
// expression; their routes must not be accepted.
func TestExpressionsAreBounded(t *testing.T) {
	for _, value := range []string{`(`, `a)|(?:b`, `\Qa`, strings.Repeat("(.*a){99}|", 90), strings.Repeat("a", 1025), `(?=a)`} {
		for _, kind := range []string{"path", "header", "query parameter"} {
			w := load(t, oneRoute)
			m := gatewayv1.HTTPRouteMatch{}
			switch kind {
			case "path":
				m.Path = &gatewayv1.HTTPPathMatch{Type: new(gatewayv1.PathMatchRegularExpression), Value: new("/" + value)}
			case "header":
				m.Headers = []gatewayv1.HTTPHeaderMatch{{Type: new(gatewayv1.HeaderMatchRegularExpression), Name: "x", Value: value}}
			default:
				m.QueryParams = []gatewayv1.HTTPQueryParamMatch{{Type: new(gatewayv1.QueryParamMatchRegularExpression), Name: "x", Value: value}}
			}
			w.HTTPRoutes[0].Spec.Rules[0].Matches = []gatewayv1.HTTPRouteMatch{m}
			testenv.Equal(t, accepted(t, w.settle(t), "a/r"), string(gatewayv1.RouteReasonUnsupportedValue), "with the %s %.20q the route is", kind, value)
		}
	}
	for _, method := range []gatewayv1.GRPCMethodMatch{{Service: new(`a)|(?:b`)}, {Method: new(`\Qa`)}, {Service: new(`(`)}, {Method: new(strings.Repeat("(.*a){99}|", 90))}} {
		method.Type = new(gatewayv1.GRPCMethodMatchRegularExpression)
		if _, flaw := grpcMatches([]gatewayv1.GRPCRouteMatch{{Method: &method}}, new(int)); flaw.ok() {
			t.Errorf("%.20q and %.20q are taken", ptr.Deref(method.Service, ""), ptr.Deref(method.Method, ""))
		}
	}
}

// An attacker who writes Secrets has a chain of hundreds of certificates; a listener must not serve it.
func TestCertificatesAreBounded(t *testing.T) {
	w := load(t, `
kind: Gateway
metadata: {namespace: a, name: g}
spec: {gatewayClassName: coracle, listeners: [{name: l, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}]}
---
kind: Secret
metadata: {namespace: a, name: cert}
stringData: {tls.names: a.example}
`)
	programmed := func() bool {
		for _, c := range w.settle(t).GatewayStatus[types.NamespacedName{Namespace: "a", Name: "g"}].Listeners[0].Conditions {
			if c.Type == string(gatewayv1.ListenerConditionProgrammed) {
				return c.Status == metav1.ConditionTrue
			}
		}
		return false
	}
	w.Memory = &Memory{}
	testenv.Require(t, programmed(), "a certificate is not served")
	name := types.NamespacedName{Namespace: "a", Name: "cert"}
	large := w.secrets[name].DeepCopy()
	large.Data[corev1.TLSCertKey] = bytes.Repeat(large.Data[corev1.TLSCertKey], 200)
	w.secrets[name] = large
	if programmed() {
		t.Errorf("a chain of %d bytes is served", len(large.Data[corev1.TLSCertKey]))
	}
}

// TestCostlyRoutesOfOtherNamespacesAreRefused: at another namespace's Gateway the expressions of routes without a host
// of their own are bounded, since they are compared with everybody's requests. With a host, or at the namespace's own
// Gateway, they are not.
func TestCostlyRoutesOfOtherNamespacesAreRefused(t *testing.T) {
	for _, c := range []struct {
		name      string
		namespace string
		hosts     []gatewayv1.Hostname
		section   string
		headers   int // each with an expression of about 30 steps
		want      string
	}{
		{"no host", "evil", nil, "all", 32, "TooLarge"}, {"no host, few", "evil", nil, "all", 4, "Accepted"},
		{"a host", "evil", []gatewayv1.Hostname{"b.example"}, "all", 32, "Accepted"}, {"the listener's host", "evil", []gatewayv1.Hostname{"*.b.example"}, "some", 32, "TooLarge"},
		{"the Gateway's own namespace", "infra", nil, "all", 32, "Accepted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := load(t, shared)
			m, common := later(0)
			m.Namespace = c.namespace
			common.ParentRefs[0].SectionName = new(gatewayv1.SectionName(c.section))
			r := &gatewayv1.HTTPRoute{ObjectMeta: m, Spec: gatewayv1.HTTPRouteSpec{CommonRouteSpec: common, Hostnames: c.hosts, Rules: make([]gatewayv1.HTTPRouteRule, 4)}}
			for i := range r.Spec.Rules {
				match := gatewayv1.HTTPRouteMatch{}
				for h := range c.headers / 4 {
					match.Headers = append(match.Headers, gatewayv1.HTTPHeaderMatch{
						Type: new(gatewayv1.HeaderMatchRegularExpression), Name: gatewayv1.HTTPHeaderName(fmt.Sprintf("x-%d", h)), Value: fmt.Sprintf("(a|b){5}[a-z]*%d", i),
					})
				}
				r.Spec.Rules[i].Matches = []gatewayv1.HTTPRouteMatch{match}
			}
			w.HTTPRoutes = append(w.HTTPRoutes, r)
			found := w.settle(t)
			testenv.Equal(t, accepted(t, found, c.namespace+"/r0"), c.want, "the route is")
			testenv.Equal(t, accepted(t, found, "shop/r"), "Accepted", "the other namespace's route is")
		})
	}
}

// TestMethodsOfAnyServiceAreCharged: a match of a method alone is an expression, too.
func TestMethodsOfAnyServiceAreCharged(t *testing.T) {
	m := match{}
	if flaw := m.method(&gatewayv1.GRPCMethodMatch{Method: new("Get")}); !flaw.ok() || m.steps == 0 {
		t.Errorf("the match has %d steps: %v", m.steps, flaw)
	}
}

// TestListenersOfOneNamespaceAreBounded: each listener is a host of the proxies, whether it has routes or not.
func TestListenersOfOneNamespaceAreBounded(t *testing.T) {
	w := load(t, `
kind: Gateway
metadata: {namespace: infra, name: g}
spec:
  gatewayClassName: coracle
  allowedListeners: {namespaces: {from: All}}
  listeners: [{name: l, port: 80, protocol: HTTP}]
`)
	const sets, each = 100, 64
	add := func(namespace string, age, listeners int) {
		s := &gatewayv1.ListenerSet{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("s%d", age), CreationTimestamp: metav1.NewTime(born.Add(time.Duration(age) * time.Minute))}}
		s.Spec.ParentRef = gatewayv1.ParentGatewayReference{Name: "g", Namespace: new(gatewayv1.Namespace("infra"))}
		for i := range listeners {
			s.Spec.Listeners = append(s.Spec.Listeners, gatewayv1.ListenerEntry{
				Name: gatewayv1.SectionName(fmt.Sprintf("l%d", i)), Port: 80, Protocol: gatewayv1.HTTPProtocolType, Hostname: new(gatewayv1.Hostname(fmt.Sprintf("h%d.s%d.%s.example", i, age, namespace))),
			})
		}
		w.ListenerSets = append(w.ListenerSets, s)
	}
	for i := range sets {
		add("evil", i+1, each)
	}
	add("good", sets+1, 1)
	r, hosts := w.settle(t), 0
	for key := range r.Sections {
		if table.Kind(key) == table.KindHost {
			hosts++
		}
	}
	testenv.True(t, hosts > each && hosts <= maxListeners/2/matchCost+2, "there are %d hosts", hosts)
	for name, want := range map[types.NamespacedName]metav1.ConditionStatus{
		{Namespace: "evil", Name: "s1"}: metav1.ConditionTrue, {Namespace: "evil", Name: fmt.Sprintf("s%d", sets)}: metav1.ConditionFalse,
		{Namespace: "good", Name: fmt.Sprintf("s%d", sets+1)}: metav1.ConditionTrue,
	} {
		for _, c := range r.ListenerSetStatus[name].Listeners[0].Conditions {
			if c.Type == string(gatewayv1.ListenerConditionProgrammed) {
				testenv.Equal(t, c.Status, want, "%s is programmed (%s):", name, c.Message)
			}
		}
	}

	// A node leaves out the namespace that takes most by these charges, which small tables do not have.
	for i := range sets {
		add("worse", sets+2+i, each)
	}
	var charged table.Charges
	testenv.NoError(t, json.Unmarshal(w.settle(t).Sections[table.KindCharges+"/gateway"], &charged))
	for i, namespace := range []string{"evil", "worse"} {
		testenv.True(t, len(charged.Namespaces) == 2 && charged.Namespaces[i].Namespace == namespace && charged.Namespaces[i].Bytes == maxListeners/2,
			"the charges are %+v", charged)
	}
}
