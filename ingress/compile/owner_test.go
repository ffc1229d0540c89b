// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestHostBelongsToItsOwnersNamespace(t *testing.T) {
	fallback := func(ing *networkingv1.Ingress) *networkingv1.Ingress {
		ing.Spec.DefaultBackend = ptr.To(service("d:80"))
		return ing
	}
	for _, c := range []struct {
		name      string
		ingresses []*networkingv1.Ingress
		want      string
		findings  string
		final     string // the hosts whose other paths are not the default host's
	}{
		{"paths of one namespace", []*networkingv1.Ingress{ingress("a/x", 2, "h/=w:80"), ingress("a/y", 1, "h/p=w:80")},
			"h/p Prefix a/w/80\nh/ Prefix a/w/80\n", "", ""},
		{"another namespace's path", []*networkingv1.Ingress{ingress("b/y", 1, "h/p=w:80", "i/=w:80"), ingress("a/x", 2, "h/=w:80")},
			"h/ Prefix a/w/80\ni/ Prefix b/w/80\n", "b/y HostTaken", ""},
		{"within another's wildcard", []*networkingv1.Ingress{ingress("b/y", 1, "web.example/=w:80", "deep.web.example/=w:80"), ingress("a/x", 2, "*.example/=w:80")},
			"*.example/ Prefix a/w/80\ndeep.web.example/ Prefix b/w/80\n", "b/y HostTaken", ""},
		{"a wildcard around another's host", []*networkingv1.Ingress{ingress("b/y", 1, "*.example/=w:80"), ingress("a/x", 2, "web.example/=w:80")},
			"*.example/ Prefix b/w/80\nweb.example/ Prefix a/w/80\n", "", ""},
		{"the default host", []*networkingv1.Ingress{fallback(ingress("b/y", 1)), ingress("c/z", 0, "/login=w:80"), ingress("a/x", 2, "h/=w:80"), ingress("b/w", 1, "i/=w:80")},
			"/ Prefix b/d/80\nh/ Prefix a/w/80\ni/ Prefix b/w/80\n", "c/z HostTaken", "h"},
		{"an alias", []*networkingv1.Ingress{withAnnotation(ingress("b/y", 1, "h/=w:80"), nginxPrefix+"server-alias", "web.example,other"), ingress("a/x", 2, "*.example/=w:80")},
			"*.example/ Prefix a/w/80\nh/ Prefix b/w/80\nother/ Prefix b/w/80\n", "b/y HostTaken", ""},
		{"www", []*networkingv1.Ingress{
			withAnnotation(ingress("b/y", 1, "web.example/=w:80"), nginxPrefix+"from-to-www-redirect", "true"), ingress("a/x", 2, "*.web.example/=w:80"),
		}, "*.web.example/ Prefix a/w/80\nweb.example/ Prefix b/w/80\n", "b/y HostTaken", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range 2 {
				r := desired(t, State{Ingresses: c.ingresses, Rules: Rules{HostOwner: true}})
				testenv.Equal(t, text(t, r.Sections), c.want, "the table is")
				testenv.Equal(t, findings(r), c.findings, "findings:")
				var final []string
				for key, value := range r.Sections {
					var h table.Host
					if _, name, ok := table.HostOf(key); ok && json.Unmarshal(value, &h) == nil && h.Final {
						final = append(final, name)
					}
				}
				slices.Sort(final)
				testenv.Equal(t, strings.Join(final, " "), c.final, "final hosts:")
				slices.Reverse(c.ingresses)
			}
		})
	}
}
