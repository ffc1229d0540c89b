// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/utils/ptr"
)

// TestExpressionsAreBounded: an expression that would take seconds for a path, or means something else inside another one, closes what it may have matched.
func TestExpressionsAreBounded(t *testing.T) {
	for _, path := range []string{"/app/(" + strings.Repeat("(.*a){99}|", 90) + "x)", "/app/" + strings.Repeat("a{999}", 150), `/app/\Qx`} {
		i := ingress("a/x", 1)
		i.Spec.IngressClassName, i.Annotations[nginxPrefix+"use-regex"] = ptr.To("nginx"), "true"
		i.Spec.Rules = []networkingv1.IngressRule{{Host: "h", IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{
			Paths: []networkingv1.HTTPIngressPath{{Path: path, PathType: ptr.To(networkingv1.PathTypeImplementationSpecific), Backend: service("w:80")}},
		}}}}
		r := desired(t, State{Ingresses: []*networkingv1.Ingress{i}})
		if got := text(t, r.Sections); got != "h/app/ RegexFold 503\n" && got != "h/ RegexFold 503\n" || findings(r) != "a/x Unsupported" {
			t.Errorf("%.30s: %s, %s", path, got, findings(r))
		}
	}
}
