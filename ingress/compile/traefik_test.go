// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestTraefikAnnotationsBecomeRoutesOrFindings(t *testing.T) {
	const open, https, closed = "h/ Prefix a/w/80\n", "h/ Prefix https a/w/80\n", "h/ Prefix 503\n"
	for _, c := range []struct{ name, class, annotation, value, want, findings string }{
		{"a middleware", "traefik", "router.middlewares", "a-auth@kubernetescrd", closed, "a/x Unsupported"},
		{"a middleware, our class", Class, "router.middlewares", "a-auth@kubernetescrd", closed, "a/x Unsupported"},
		{"a middleware, which nginx does not know", "nginx", "router.middlewares", "a-auth@kubernetescrd", "h/ Prefix a/w/80\n", ""},
		{"no middleware", "traefik", "router.middlewares", " ", open, ""},
		{"both entry points", "traefik", "router.entrypoints", "web, websecure", open, ""},
		{"the one without TLS", "traefik", "router.entrypoints", "web", open, ""},
		{"the one with TLS", "traefik", "router.entrypoints", "websecure", https, ""},
		{"another entry point", "traefik", "router.entrypoints", "metrics", closed, "a/x Unsupported"},
		{"TLS", "traefik", "router.tls", "true", https, ""},
		{"no TLS", "traefik", "router.tls", "false", open, ""},
		{"TLS that cannot be read", "traefik", "router.tls", "maybe", closed, "a/x Unsupported"},
		{"options of TLS, which may ask for certificates of clients", "traefik", "router.tls.options", "a-mtls@kubernetescrd", closed, "a/x Unsupported"},
		{"a resolver of certificates", "traefik", "router.tls.certresolver", "le", open, "a/x Ignored"},
		{"a priority", "traefik", "router.priority", "42", closed, "a/x Unsupported"},
		{"what Traefik will have", "traefik", "router.unheard", "of", closed, "a/x Unsupported"},
		{"observability", "traefik", "router.observability.accesslogs", "true", open, "a/x Ignored"},
		{"expressions", "traefik", "router.pathmatcher", "PathRegexp", closed, "a/x Unsupported"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := ingress("a/x", 1, "h/=w:80")
			i.Spec.IngressClassName = &c.class
			i.Annotations[traefikPrefix+c.annotation] = c.value
			r := desired(t, State{Ingresses: []*networkingv1.Ingress{i}})
			if got := text(t, r.Sections); got != c.want {
				t.Errorf("routes:\n%s\nwant:\n%s", got, c.want)
			}
			testenv.Equal(t, findings(r), c.findings, "findings:")
		})
	}
}

func TestTraefikPathMatcher(t *testing.T) {
	i := ingress("a/x", 1, "h/foo=w:80")
	i.Spec.IngressClassName, i.Spec.Rules[0].HTTP.Paths[0].PathType = ptr.To("traefik"), ptr.To(networkingv1.PathTypeImplementationSpecific)
	i.Annotations[traefikPrefix+"router.pathmatcher"] = "Path"
	testenv.Equal(t, text(t, desired(t, State{Ingresses: []*networkingv1.Ingress{i}}).Sections), "h/foo Exact a/w/80\n", "")
}

func TestTraefikAnnotationsOfServices(t *testing.T) {
	i := ingress("a/x", 1, "h/=w:80")
	i.Spec.IngressClassName = ptr.To("traefik")
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "w", Annotations: map[string]string{traefikPrefix + "service.serversscheme": "https"}},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	}
	r := desired(t, State{Ingresses: []*networkingv1.Ingress{i}, Service: func(_, _ string) *corev1.Service { return svc }})
	testenv.Equal(t, findings(r), "a/x Ignored", "")
	for _, all := range r.Findings {
		testenv.True(t, strings.Contains(all[0].Message, "service.serversscheme"), "%v", all[0].Message)
	}
}
