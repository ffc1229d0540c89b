// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// leading is the state of a leader, which looks at Services, here of all names.
func leading(all ...*networkingv1.Ingress) State {
	return State{Ingresses: all, Service: func(string, string) *corev1.Service {
		return &corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
	}}
}

// TestPathsTakenByExpressionsHaveAFinding: an expression of the class nginx comes before paths of other classes by the
// length of its text; who loses requests by that learns of it.
func TestPathsTakenByExpressionsHaveAFinding(t *testing.T) {
	exact := ingress("b/own", 1, "h=/login=s:80")
	for _, c := range []struct {
		name  string
		nginx []string // paths of the class nginx
		own   *networkingv1.Ingress
		finds string // part of the finding; "" for none
	}{
		{"all of a shorter path", []string{"/.*"}, ingress("b/own", 1, "h/=s:80"), `the expression "/.*" of Ingress/a/x, which is of the class nginx, takes requests for "/" at the host "h"`},
		{"one branch of an alternation", []string{"/(shop|app)"}, ingress("b/own", 1, "h/app=s:80"), `takes requests for "/app"`},
		{"without regard to case", []string{"/LOGI[A-Z]"}, ingress("b/own", 1, "h/login=s:80"), `takes requests for "/login"`},
		{"an exact path", []string{"/log(in|out)"}, exact, `takes requests for "/login"`},
		{"the first of two", []string{"/(a|b|app)", "/.*"}, ingress("b/own", 1, "h/app=s:80"), `the expression "/(a|b|app)"`},
		{"a part below the path, as by any longer path", []string{"/app/(.*)"}, ingress("b/own", 1, "h/app=s:80"), ""},
		{"a shorter expression", []string{"/.*"}, ingress("b/own", 1, "h/application=s:80"), ""},
		{"another branch", []string{"/(shop|store)"}, ingress("b/own", 1, "h/app=s:80"), ""},
		{"another host", []string{"/.*"}, ingress("b/own", 1, "i/=s:80"), ""},
	} {
		for _, age := range []int{1, 9} { // age decides nothing
			r := desired(t, leading(withExpressions("a/x", age, "h", c.nginx...), c.own))
			if got := findings(r); (got != "") != (c.finds != "") || c.finds != "" && !has(r, "b/own", ReasonPathTaken, c.finds) {
				t.Errorf("%s: the findings are %q", c.name, got)
			}
		}
	}
	server := leading(withExpressions("a/x", 1, "h", "/.*"), ingress("b/own", 1, "h/=s:80"))
	server.Service = nil
	testenv.Equal(t, findings(desired(t, server)), "", "a server that makes tables finds")
}

// TestLookingForTakenPathsIsBounded: expressions of a tenant do not take the leader's time.
func TestLookingForTakenPathsIsBounded(t *testing.T) {
	c := &compiler{s: leading(), r: Result{Findings: map[types.NamespacedName][]Finding{}}}
	c.s.Memory = &Memory{}
	c.s.Memory.evictUnused(c.s)
	h, nginx, own := &host{regex: true}, withExpressions("a/x", 2, "h"), ingress("b/own", 1)
	for _, path := range numberedPaths(400, "/(%d|(.*a){90})") {
		h.routes = append(h.routes, &route{Route: table.Route{Path: path}, written: path, ing: nginx, options: c.s.Memory.optionsOf(nginx), steps: 500})
	}
	for _, path := range numberedPaths(500, "/%d"+strings.Repeat("p", 30)) {
		h.routes = append(h.routes, &route{Route: table.Route{Path: path}, written: path, ing: own, options: c.s.Memory.optionsOf(own)})
	}
	c.findShadowed("h", h)
	testenv.Equal(t, c.shadow, maxShadow, "the steps that were taken are")
}
