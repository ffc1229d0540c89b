// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// annotations are those of ingress-nginx, without their prefix.
type annotations map[string]string

// object makes an Ingress of a class, with rules such as "a.example/foo=web". "=/foo" before the backend makes an exact
// path, "~/foo" one of ImplementationSpecific: "a.example~/foo=web".
func object(name, class string, a annotations, rules ...string) *networkingv1.Ingress {
	namespace, name, _ := strings.Cut(name, "/")
	ing := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: map[string]string{}}}
	ing.Spec.IngressClassName = &class
	for key, value := range a {
		ing.Annotations["nginx.ingress.kubernetes.io/"+key] = value
	}
	for _, text := range rules {
		at := strings.LastIndexByte(text, '=')
		host, path, _ := strings.Cut(text[:at], "/")
		kind := networkingv1.PathTypePrefix
		if rest, ok := strings.CutSuffix(host, "="); ok {
			host, kind = rest, networkingv1.PathTypeExact
		} else if rest, ok := strings.CutSuffix(host, "~"); ok {
			host, kind = rest, networkingv1.PathTypeImplementationSpecific
		}
		ing.Spec.Rules = append(ing.Spec.Rules, networkingv1.IngressRule{Host: host, IngressRuleValue: networkingv1.IngressRuleValue{
			HTTP: &networkingv1.HTTPIngressRuleValue{Paths: []networkingv1.HTTPIngressPath{{Path: "/" + path, PathType: &kind, Backend: networkingv1.IngressBackend{
				Service: &networkingv1.IngressServiceBackend{Name: text[at+1:], Port: networkingv1.ServiceBackendPort{Number: 80}},
			}}}},
		}})
	}
	return ing
}

// cluster is what a test of annotations begins with.
type cluster struct {
	ingresses []*networkingv1.Ingress
	secrets   map[string]map[string]string // namespace/name → data; nil for those without
	configs   map[string]map[string]string // namespace/name → data of ConfigMaps
	endpoints map[string]string            // namespace/service → address, or none
	defaults  map[string]string            // keys of the ConfigMap for all Ingresses; nil for none
	rules     compile.Rules
	settings  table.Settings
	options   Options
}

// serve compiles the cluster and serves it. Services without endpoints of their own are an echo that names them.
func (c cluster) serve(t testing.TB) (*fixture, compile.Result) {
	t.Helper()
	changes, r := c.changes(t)
	return newFixture(t, c.options, changes...), r
}

// change has a proxy serve the cluster instead of another one.
func (c cluster) change(t testing.TB, f *fixture) {
	t.Helper()
	changes, _ := c.changes(t)
	sections := table.Sections{}
	for _, one := range changes {
		sections[one.Key] = one.Value
	}
	if problems := f.Replace(sections); len(problems) > 0 {
		t.Fatalf("the table has problems: %v", problems)
	}
}

// changes are the table of the cluster, at the site "s".
func (c cluster) changes(t testing.TB) ([]table.Change, compile.Result) {
	t.Helper()
	s := compile.State{Ingresses: c.ingresses, Secrets: map[types.NamespacedName]*corev1.Secret{}}
	for name, data := range c.secrets {
		namespace, name, _ := strings.Cut(name, "/")
		secret := &corev1.Secret{Data: map[string][]byte{}}
		for key, value := range data {
			secret.Data[key] = []byte(value)
		}
		s.Secrets[types.NamespacedName{Namespace: namespace, Name: name}] = secret
	}
	s.ConfigMaps = map[types.NamespacedName]*corev1.ConfigMap{}
	for name, data := range c.configs {
		namespace, name, _ := strings.Cut(name, "/")
		s.ConfigMaps[types.NamespacedName{Namespace: namespace, Name: name}] = &corev1.ConfigMap{Data: data}
	}
	if s.Rules = c.rules; c.defaults != nil {
		s.Defaults = &corev1.ConfigMap{Data: c.defaults}
	}
	r := testenv.Must(compile.Desired(s))(t)
	backends := testenv.Must(r.Sections.Backends())(t)
	var changes []table.Change
	for key, value := range r.Sections {
		if table.Kind(key) == table.KindCharges { // for the node alone, which keeps it
			continue
		}
		key = strings.Replace(key, "host/"+table.SiteIngress+"/", "host/s/", 1)
		changes = append(changes, table.Change{Key: key, Value: json.RawMessage(value)})
	}
	for key, b := range backends {
		address := c.endpoints[b.Namespace+"/"+b.Service]
		if address == "" {
			address = backendServer(t, showing(b.Service))
		}
		list := []string{address}
		if address == "none" {
			list = nil
		}
		changes = append(changes, section(t, key, table.Endpoints{Addresses: list}))
	}
	return append(changes, section(t, table.KindSettings, c.settings)), r
}

// showing answers with its name and what it saw.
func showing(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", name, r.RequestURI)
		for _, header := range strings.Split(r.Header.Get("X-Show"), ",") {
			if header == "Host" {
				fmt.Fprintf(w, " Host=%s", r.Host)
			} else if v := r.Header.Get(header); v != "" {
				fmt.Fprintf(w, " %s=%s", header, v)
			}
		}
	}
}

// exchanged is a request with what the answer must be.
type exchanged struct {
	url     string            // http://HOST/PATH, or https
	headers map[string]string // of the request
	method  string            // GET without one
	status  int               // 200 without one
	body    string            // not compared when empty
	answer  map[string]string // headers of the answer; "" for none
}

func (e exchanged) check(t *testing.T, f *fixture) *http.Response {
	t.Helper()
	address := f.http
	if strings.HasPrefix(e.url, "https:") {
		address = f.https
	}
	if e.method == "" {
		e.method = http.MethodGet
	}
	if e.status == 0 {
		e.status = http.StatusOK
	}
	req := httptest.NewRequest(e.method, e.url, nil)
	req.RequestURI = ""
	for name, value := range e.headers {
		req.Header.Set(name, value)
	}
	c := client(t, address, "http1")
	c.Timeout = patience
	res := testenv.Must(c.Do(req))(t)
	got := body(t, res)
	if res.StatusCode != e.status || e.body != "" && got != e.body {
		t.Errorf("%s %s %v: %d %q, want %d %q", e.method, e.url, e.headers, res.StatusCode, got, e.status, e.body)
	}
	for name, want := range e.answer {
		testenv.Equal(t, res.Header.Get(name), want, "%s %s %v: the header %s is", e.method, e.url, e.headers, name)
	}
	return res
}

// reasons are those of all findings, with the words of their messages.
func reasons(r compile.Result) string {
	var out []string
	for _, all := range r.Findings {
		for _, f := range all {
			out = append(out, f.Reason+": "+f.Message)
		}
	}
	return strings.Join(out, "\n")
}
