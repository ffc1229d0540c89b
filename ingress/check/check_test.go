// SPDX-License-Identifier: Apache-2.0

package check_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/ingress/check"
	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const nginx = "nginx.ingress.kubernetes.io/"

// ingress makes an Ingress of a class, "" for none, with a route to the Service web and annotations "name=value" of
// ingress-nginx.
func ingress(name, class string, annotations ...string) *networkingv1.Ingress {
	namespace, name, _ := strings.Cut(name, "/")
	ing := &networkingv1.Ingress{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: map[string]string{},
			CreationTimestamp: metav1.NewTime(time.Unix(1_000_000, 0))},
		Spec: networkingv1.IngressSpec{Rules: []networkingv1.IngressRule{{Host: name + ".example", IngressRuleValue: networkingv1.IngressRuleValue{
			HTTP: &networkingv1.HTTPIngressRuleValue{Paths: []networkingv1.HTTPIngressPath{{
				Path: "/", PathType: ptr.To(networkingv1.PathTypePrefix), Backend: networkingv1.IngressBackend{
					Service: &networkingv1.IngressServiceBackend{Name: "web", Port: networkingv1.ServiceBackendPort{Number: 80}}},
			}}}}}}},
	}
	if class != "" {
		ing.Spec.IngressClassName = &class
	}
	for _, a := range annotations {
		name, value, _ := strings.Cut(a, "=")
		ing.Annotations[nginx+name] = value
	}
	return ing
}

func class(name, controller string, isDefault bool) *networkingv1.IngressClass {
	c := &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.IngressClassSpec{Controller: controller}}
	if isDefault {
		c.Annotations = map[string]string{networkingv1.AnnotationIsDefaultIngressClass: "true"}
	}
	return c
}

func service(namespace string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "web"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
}

// text is a report as lines "namespace/name effect field".
func text(r check.Report) string {
	var out []string
	for _, f := range r.Findings {
		out = append(out, fmt.Sprintf("%s/%s %s %s", f.Namespace, f.Name, f.Effect, strings.TrimPrefix(f.Field, nginx)))
	}
	return strings.Join(out, "; ")
}

// forbid makes the API refuse what this user has no right to.
func forbid(client *fake.Clientset, verb, resource string, in func(namespace string) bool) {
	client.PrependReactor(verb, resource, func(a clienttesting.Action) (bool, runtime.Object, error) {
		if !in(a.GetNamespace()) {
			return false, nil, nil
		}
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "", nil)
	})
}

func anywhere(string) bool { return true }

// TestForeignClusterIsJudgedAsIfCoracleServedIt: ingress-nginx runs there, and coracle does not. Each effect is seen.
func TestForeignClusterIsJudgedAsIfCoracleServedIt(t *testing.T) {
	client := fake.NewClientset(class("nginx", "k8s.io/ingress-nginx", true), class("alb", "ingress.k8s.aws/alb", false),
		class("internal", "k8s.io/ingress-nginx", false), service("a"),
		ingress("a/unknown", "nginx", "no-such-thing=true"), ingress("a/snippet", "nginx", "server-snippet=return 200;", "limit-rps=5"),
		ingress("a/tuned", "nginx", "proxy-buffering=on"), ingress("b/gone", "internal"), ingress("a/other", "alb"), ingress("a/unnamed", ""),
		ingress("a/good", "nginx"))
	r := testenv.Must(check.Run(t.Context(), check.Options{Client: client, Now: time.Now()}))(t)
	testenv.Equal(t, text(r), "a/snippet refused server-snippet; a/snippet different limit-rps; a/tuned ignored proxy-buffering; "+
		"a/unknown refused no-such-thing; a/unnamed refused spec.ingressClassName; b/gone broken spec.rules", "the findings are")
	testenv.Equal(t, fmt.Sprint(r.Ingresses, r.Others, r.Refused, r.Broken, r.Different, r.Ignored), "6 1 3 1 1 1", "the counts are")
	testenv.True(t, strings.Contains(strings.Join(r.Notes, "\n"), "the IngressClass nginx belongs to k8s.io/ingress-nginx"), "the notes are %q", r.Notes)
	testenv.True(t, strings.Contains(strings.Join(r.Notes, "\n"), "classes were not checked: alb"), "the notes are %q", r.Notes)
	for _, a := range client.Actions() {
		testenv.True(t, a.GetVerb() == "list" || a.GetVerb() == "get", "the check does %s", a.GetVerb())
	}
}

// TestRightsOfOneNamespaceSuffice: what may not be read is named, and nothing is concluded from it.
func TestRightsOfOneNamespaceSuffice(t *testing.T) {
	ing := ingress("a/web", "nginx", "auth-type=basic", "auth-secret=users", "custom-headers=headers", "no-such-thing=true")
	ing.Spec.TLS = []networkingv1.IngressTLS{{Hosts: []string{"web.example"}, SecretName: "tls"}}
	client := fake.NewClientset(ing)
	outside := func(namespace string) bool { return namespace != "a" }
	forbid(client, "list", "ingresses", outside)
	forbid(client, "list", "ingressclasses", anywhere)
	for _, what := range []string{"services", "secrets", "configmaps"} {
		forbid(client, "*", what, anywhere)
	}
	_, err := check.Run(t.Context(), check.Options{Client: client})
	testenv.True(t, err != nil && strings.Contains(err.Error(), "name a namespace by -n"), "for all namespaces: %v", err)
	r := testenv.Must(check.Run(t.Context(), check.Options{Client: client, Namespace: "a"}))(t)
	testenv.Equal(t, text(r), "a/web refused no-such-thing; a/web different auth-secret; a/web different auth-type; a/web different custom-headers",
		"the findings are")
	notes := strings.Join(r.Notes, "\n")
	for _, want := range []string{"Secrets may not", "ConfigMaps may not", "Services may not", "IngressClasses may not", "kube-system/ingress", "only the namespace a"} {
		testenv.True(t, strings.Contains(notes, want), "the notes do not say %q: %s", want, notes)
	}
}

// TestFilesAreJudgedWithoutACluster: several documents, lists, JSON and YAML.
func TestFilesAreJudgedWithoutACluster(t *testing.T) {
	o := check.NewObjects()
	testenv.NoError(t, o.Read(strings.NewReader(`# Source: chart/templates/ingress.yaml
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, annotations: {nginx.ingress.kubernetes.io/auth-tls-secret: "other/ca"}}
spec:
  rules: [{host: web.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: outside, port: {number: 80}}}}]}}]
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: ExternalName, externalName: www.example}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
---
`), "shop"))
	testenv.NoError(t, o.Read(strings.NewReader(`{"apiVersion": "networking.k8s.io/v1", "kind": "IngressList", "items": [
		{"metadata": {"name": "a", "namespace": "x"}, "spec": {"ingressClassName": "nginx", "rules": [{"host": "web.example", "http": {"paths": [
			{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}}]}`), "shop"))
	r := testenv.Must(check.Run(t.Context(), check.Options{Objects: o, Now: time.Unix(2_000_000, 0)}))(t)
	testenv.Equal(t, text(r), "shop/web refused auth-tls-secret; shop/web refused spec.rules; shop/web different auth-tls-secret; x/a broken spec.rules",
		"the findings are")
	testenv.True(t, len(r.Notes) == 1 && strings.Contains(r.Notes[0], "no cluster was read"), "the notes are %q", r.Notes)
	for _, c := range []struct{ name, text, want string }{
		{"an old version", "apiVersion: extensions/v1beta1\nkind: Ingress\nmetadata: {name: old}", "write it as networking.k8s.io/v1"},
		{"no object", "a: b", "apiVersion or kind is missing"},
		{"no name", "apiVersion: networking.k8s.io/v1\nkind: Ingress", "no metadata.name"},
		{"no YAML", "---\na: b: c", "document"},
		{"another shape", "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: x}\nspec: {rules: 5}", "document 1"},
		{"a text", "hello", "document 1"},
	} {
		err := check.NewObjects().Read(strings.NewReader(c.text), "default")
		testenv.True(t, err != nil && strings.Contains(err.Error(), c.want), "%s: %v", c.name, err)
	}
}

// TestFilesTakeThePlaceOfTheClustersObjects: a new Ingress is younger than those that are there, a changed one keeps
// its age, and a ConfigMap of a file counts.
func TestFilesTakeThePlaceOfTheClustersObjects(t *testing.T) {
	client := fake.NewClientset(service("a"), service("b"), ingress("a/web", "nginx"))
	o := check.NewObjects()
	testenv.NoError(t, o.Read(strings.NewReader(`
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: a, annotations: {nginx.ingress.kubernetes.io/no-such-thing: "1"}}
spec: {ingressClassName: nginx, rules: [{host: web.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: young, namespace: b}
spec: {ingressClassName: nginx, rules: [{host: web.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: ingress-nginx-controller, namespace: ingress-nginx}
data: {main-snippet: "x"}
`), "a"))
	options := check.Options{Client: client, Objects: o, Now: time.Now()}
	r := testenv.Must(check.Run(t.Context(), options))(t)
	testenv.Equal(t, text(r), "a/web refused no-such-thing; b/young broken spec.rules", "the findings are")
	options.Defaults = types.NamespacedName{Namespace: "ingress-nginx", Name: "ingress-nginx-controller"}
	r = testenv.Must(check.Run(t.Context(), options))(t)
	testenv.True(t, strings.Contains(text(r), "ingress-nginx/ingress-nginx-controller refused main-snippet"), "with the defaults: %s", text(r))
	options.Defaults.Name = "none"
	_, err := check.Run(t.Context(), options)
	testenv.True(t, err != nil && strings.Contains(err.Error(), "no ConfigMap ingress-nginx/none"), "a missing ConfigMap: %v", err)
}

// TestSecretsOfFilesAreJudged: with data and with stringData.
func TestSecretsOfFilesAreJudged(t *testing.T) {
	for _, c := range []struct{ data, want string }{
		{`stringData: {auth: "joe:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g="}`, ""}, {`data: {auth: am9lOntTSEF9VzZwaDVNbTVQejhHZ2lVTGJQZ3pHMzdtajlnPQ==}`, ""},
		{`stringData: {other: x}`, "BadUsers"},
	} {
		o := check.NewObjects()
		testenv.NoError(t, o.Read(strings.NewReader(`
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, annotations: {nginx.ingress.kubernetes.io/auth-type: basic, nginx.ingress.kubernetes.io/auth-secret: users}}
spec: {ingressClassName: nginx, rules: [{host: web.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]}
---
{apiVersion: v1, kind: Secret, metadata: {name: users}, `+c.data+`}`), "a"))
		r := testenv.Must(check.Run(t.Context(), check.Options{Objects: o}))(t)
		got := ""
		for _, f := range r.Findings {
			if f.Effect != compile.EffectDifferent {
				got += f.Reason
			}
		}
		testenv.Equal(t, got, c.want, "with %s the findings are", c.data)
	}
}

// TestAllFindingsAreListed: events say twenty of an object, a check all.
func TestAllFindingsAreListed(t *testing.T) {
	ing := ingress("a/web", "nginx")
	for i := range 50 {
		ing.Annotations[fmt.Sprintf("%sno-such-%d", nginx, i)] = "1"
	}
	r := testenv.Must(check.Run(t.Context(), check.Options{Client: fake.NewClientset(ing, service("a"))}))(t)
	testenv.Equal(t, r.Refused, 50, "refused:")
}
