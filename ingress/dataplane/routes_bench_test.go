// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/http"
	"net/http/httptest"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/expression"
)

// BenchmarkRoutes finds the last of 50 routes of a host: of plain paths, of plain paths that a neighbour makes
// expressions, and of expressions.
func BenchmarkRoutes(b *testing.B) {
	regex := annotations{"use-regex": "true"}
	for name, c := range map[string]cluster{
		"plain":       {ingresses: []*networkingv1.Ingress{object("a/x", "coracle", nil, numbered(50, "h/app%02d=w")...)}},
		"literal":     {ingresses: []*networkingv1.Ingress{object("a/x", "nginx", regex, numbered(50, "h/app%02d=w")...)}},
		"expressions": {ingresses: []*networkingv1.Ingress{object("a/x", "nginx", regex, numbered(50, "h~/app%02d(/|$)(.*)=w")...)}},
	} {
		b.Run(name, func(b *testing.B) {
			c.endpoints = map[string]string{"a/w": "none"}
			f, _ := c.serve(b)
			s := f.current.Load().sites["s"]
			in := httptest.NewRequest(http.MethodGet, "http://h/app49/some/path?x=1", nil)
			for b.Loop() {
				from := steps{left: expression.MaxRequest, free: expression.MaxRequest}
				if r, _ := s.route("h", "/app49/some/path", in, &from); r == nil {
					b.Fatal("there is no route")
				}
			}
		})
	}
}
