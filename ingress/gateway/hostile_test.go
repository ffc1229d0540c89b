// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// accepted is the reason of the condition Accepted of an HTTPRoute at its first parent.
func accepted(t testing.TB, r Result, route string) string {
	t.Helper()
	namespace, name, _ := strings.Cut(route, "/")
	parents := r.HTTPRouteStatus[types.NamespacedName{Namespace: namespace, Name: name}].Parents
	if len(parents) == 0 {
		t.Fatalf("the route %s has no parent", route)
	}
	for _, c := range parents[0].Conditions {
		if c.Type == string(gatewayv1.RouteConditionAccepted) {
			return c.Reason
		}
	}
	t.Fatalf("the route %s has no condition Accepted", route)
	return ""
}

// TestOneNamespaceDoesNotFillTheTable has a route with 128 matches of 4 KB at 64 listeners, which would be 34 MB of text.
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
		if got := accepted(t, r, route); got != want {
			t.Errorf("the route %s is %s, not %s", route, got, want)
		}
	}
	if n := r.GatewayStatus[types.NamespacedName{Namespace: "a", Name: "g"}].Listeners[0].AttachedRoutes; n != 2 {
		t.Errorf("%d routes are attached to a listener", n)
	}
	size := 0
	for _, s := range r.Sections {
		size += len(s)
	}
	if size > 1<<20 {
		t.Errorf("the table has %d bytes", size)
	}
	w.HTTPRoutes[1].Spec.Hostnames = []gatewayv1.Hostname{"h1.example"}
	if got := accepted(t, w.settle(t), "greedy/r"); got != "Accepted" {
		t.Errorf("at one host the route is %s", got)
	}
}

func TestExpressionsAreBounded(t *testing.T) {
	for _, value := range []string{`(`, `a)|(?:b`, `\Qa`, strings.Repeat("(.*a){99}|", 90), strings.Repeat("a", 1025), `(?=a)`} {
		for _, kind := range []string{"path", "header", "query parameter"} {
			w := load(t, oneRoute)
			m := gatewayv1.HTTPRouteMatch{}
			switch kind {
			case "path":
				m.Path = &gatewayv1.HTTPPathMatch{Type: pointer(gatewayv1.PathMatchRegularExpression), Value: pointer("/" + value)}
			case "header":
				m.Headers = []gatewayv1.HTTPHeaderMatch{{Type: pointer(gatewayv1.HeaderMatchRegularExpression), Name: "x", Value: value}}
			default:
				m.QueryParams = []gatewayv1.HTTPQueryParamMatch{{Type: pointer(gatewayv1.QueryParamMatchRegularExpression), Name: "x", Value: value}}
			}
			w.HTTPRoutes[0].Spec.Rules[0].Matches = []gatewayv1.HTTPRouteMatch{m}
			if got := accepted(t, w.settle(t), "a/r"); got != string(gatewayv1.RouteReasonUnsupportedValue) {
				t.Errorf("with the %s %.20q the route is %s", kind, value, got)
			}
		}
	}
	for _, method := range []gatewayv1.GRPCMethodMatch{{Service: pointer(`a)|(?:b`)}, {Method: pointer(`\Qa`)}, {Service: pointer(`(`)}, {Method: pointer(strings.Repeat("(.*a){99}|", 90))}} {
		method.Type = pointer(gatewayv1.GRPCMethodMatchRegularExpression)
		if _, flaw := grpcMatches([]gatewayv1.GRPCRouteMatch{{Method: &method}}); flaw.ok() {
			t.Errorf("%.20q and %.20q are taken", deref(method.Service, ""), deref(method.Method, ""))
		}
	}
}

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
	if !programmed() {
		t.Fatal("a certificate is not served")
	}
	name := types.NamespacedName{Namespace: "a", Name: "cert"}
	large := w.secrets[name].DeepCopy()
	large.Data[corev1.TLSCertKey] = bytes.Repeat(large.Data[corev1.TLSCertKey], 200)
	w.secrets[name] = large
	if programmed() {
		t.Errorf("a chain of %d bytes is served", len(large.Data[corev1.TLSCertKey]))
	}
}
