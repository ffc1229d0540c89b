// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// ingress makes one of a namespace and name, so many seconds old, with rules such as "a.example/foo=web:80" and
// "a.example=/foo=web:80" for an exact path.
func ingress(name string, age int, rules ...string) *networkingv1.Ingress {
	namespace, name, _ := strings.Cut(name, "/")
	ing := &networkingv1.Ingress{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, CreationTimestamp: metav1.NewTime(time.Unix(int64(1_000_000-age), 0)), Annotations: map[string]string{},
		},
		Spec: networkingv1.IngressSpec{IngressClassName: ptr.To(Class)},
	}
	for _, text := range rules {
		at, backend, _ := cutLast(text, "=")
		host, path, _ := strings.Cut(at, "/")
		kind := networkingv1.PathTypePrefix
		if exact, ok := strings.CutSuffix(host, "="); ok {
			host, kind = exact, networkingv1.PathTypeExact
		}
		ing.Spec.Rules = append(ing.Spec.Rules, networkingv1.IngressRule{Host: host, IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{
			Paths: []networkingv1.HTTPIngressPath{{Path: "/" + path, PathType: &kind, Backend: service(backend)}},
		}}})
	}
	return ing
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func service(text string) networkingv1.IngressBackend {
	name, port, _ := strings.Cut(text, ":")
	out := networkingv1.IngressServiceBackend{Name: name}
	if _, err := fmt.Sscan(port, &out.Port.Number); err != nil {
		out.Port.Name = port
	}
	return networkingv1.IngressBackend{Service: &out}
}

// text is a table as lines "host path kind → backend".
func text(t *testing.T, s table.Sections) string {
	var out strings.Builder
	for _, key := range slices.Sorted(maps.Keys(s)) {
		_, name, ok := table.HostOf(key)
		if !ok {
			fmt.Fprintln(&out, key)
			continue
		}
		var h table.Host
		testenv.NoError(t, json.Unmarshal(s[key], &h))
		for _, r := range h.Routes {
			to := "503"
			if len(r.Backends) == 1 && r.Refused == "" {
				to = strings.TrimPrefix(r.Backends[0].Key(), table.KindEndpoints+"/")
			}
			if r.RedirectHTTPS != 0 {
				to = fmt.Sprintf("https %s", to)
			}
			fmt.Fprintf(&out, "%s%s %s %s\n", name, r.Path, r.Kind, to)
		}
	}
	return out.String()
}

func findings(r Result) string {
	var out []string
	for who, all := range r.Findings {
		for _, f := range all {
			out = append(out, fmt.Sprintf("%s %s", who, f.Reason))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

func desired(t *testing.T, s State) Result {
	t.Helper()
	return testenv.Must(Desired(s))(t)
}

func TestIngressBecomesRoutes(t *testing.T) {
	with := func(ing *networkingv1.Ingress, f func(*networkingv1.Ingress)) *networkingv1.Ingress {
		f(ing)
		return ing
	}
	annotation := func(name, value string) func(*networkingv1.Ingress) {
		return func(ing *networkingv1.Ingress) { ing.Annotations[name] = value }
	}
	for _, c := range []struct {
		name      string
		ingresses []*networkingv1.Ingress
		want      string
		findings  string
	}{
		{"the longest path is first, of two of a length the exact one", []*networkingv1.Ingress{
			ingress("a/x", 1, "h/=root:80", "h/foo=foo:80", "h=/foo=exact:80", "h/foo/bar/=bar:http"),
		}, "h/foo/bar Prefix a/bar/http\nh/foo Exact a/exact/80\nh/foo Prefix a/foo/80\nh/ Prefix a/root/80\n", ""},
		{"hosts have one form", []*networkingv1.Ingress{ingress("a/x", 1, "H.Example.=w:80", "*.example=w:80", "=w:80")},
			"/ Prefix a/w/80\n*.example/ Prefix a/w/80\nh.example/ Prefix a/w/80\n", ""},
		{"the oldest has a path", []*networkingv1.Ingress{ingress("b/y", 1, "h/p=new:80", "h/q=q:80"), ingress("a/x", 2, "h/p=old:80")},
			"h/p Prefix a/old/80\nh/q Prefix b/q/80\n", "b/y PathTaken"},
		{"of the same age the first by name has it", []*networkingv1.Ingress{ingress("b/y", 1, "h/p=b:80"), ingress("a/x", 1, "h/p=a:80")},
			"h/p Prefix a/a/80\n", "b/y PathTaken"},
		{"a default backend comes after all paths of its hosts", []*networkingv1.Ingress{
			with(ingress("a/x", 1, "h/p=p:80"), func(i *networkingv1.Ingress) { i.Spec.DefaultBackend = ptr.To(service("d:80")) }), ingress("b/y", 0, "h/=root:80"),
		}, "h/p Prefix a/p/80\nh/ Prefix b/root/80\nh/ Prefix a/d/80\n", ""},
		{"a default backend without rules is for all other hosts", []*networkingv1.Ingress{
			with(ingress("a/x", 1), func(i *networkingv1.Ingress) { i.Spec.DefaultBackend = ptr.To(service("d:80")) }),
		}, "/ Prefix a/d/80\n", ""},
		{"a resource as a backend", []*networkingv1.Ingress{with(ingress("a/x", 1, "h/=w:80"), func(i *networkingv1.Ingress) {
			i.Spec.Rules[0].HTTP.Paths[0].Backend = networkingv1.IngressBackend{Resource: &corev1.TypedLocalObjectReference{Kind: "Bucket", Name: "b"}}
		})}, "h/ Prefix 503\n", "a/x Unsupported"},
		{"a class of another controller", []*networkingv1.Ingress{with(ingress("a/x", 1, "h/=w:80"), func(i *networkingv1.Ingress) { i.Spec.IngressClassName = ptr.To("haproxy") })}, "", ""},
		{"no class", []*networkingv1.Ingress{with(ingress("a/x", 1, "h/=w:80"), func(i *networkingv1.Ingress) { i.Spec.IngressClassName = nil })}, "", ""},
		{"the annotation of old", []*networkingv1.Ingress{with(ingress("a/x", 1, "h/=w:80"), func(i *networkingv1.Ingress) {
			i.Spec.IngressClassName = nil
			i.Annotations[classAnnotation] = "traefik"
		})}, "h/ Prefix a/w/80\n", ""},
		{"what may restrict access closes the route", []*networkingv1.Ingress{with(ingress("a/x", 1, "h/=w:80"), annotation(nginxPrefix+"modsecurity-snippet", "x"))},
			"h/ Prefix 503\n", "a/x Unsupported"},
		{"a redirect without a certificate", []*networkingv1.Ingress{with(ingress("a/x", 1, "h/=w:80"), annotation(nginxPrefix+"force-ssl-redirect", "true"))},
			"h/ Prefix https a/w/80\n", ""},
		{"a host that is none", []*networkingv1.Ingress{ingress("a/x", 1, "h:80/=w:80")}, "", "a/x BadHost"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := desired(t, State{Ingresses: c.ingresses})
			testenv.Equal(t, text(t, r.Sections), c.want, "the table is")
			testenv.Equal(t, findings(r), c.findings, "findings:")
		})
	}
}

func TestForeignIngressClassesAreIgnored(t *testing.T) {
	class := func(name, controller, adopted string) *networkingv1.IngressClass {
		return &networkingv1.IngressClass{
			ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{AdoptedAnnotation: adopted}}, Spec: networkingv1.IngressClassSpec{Controller: controller},
		}
	}
	of := func(class string) *networkingv1.Ingress {
		i := ingress("a/x", 1, "h/=w:80")
		i.Spec.IngressClassName = &class
		return i
	}
	for _, c := range []struct {
		name, class string
		classes     []*networkingv1.IngressClass
		want        bool
	}{
		{"nginx while there is no such class", "nginx", nil, true},
		{"nginx of ingress-nginx", "nginx", []*networkingv1.IngressClass{class("nginx", "k8s.io/ingress-nginx", "")}, false},
		{"nginx that was given to us", "nginx", []*networkingv1.IngressClass{class("nginx", "k8s.io/ingress-nginx", "true")}, true},
		{"a class of our controller", "edge", []*networkingv1.IngressClass{class("edge", Controller, "")}, true},
		{"our own name with another controller", Class, []*networkingv1.IngressClass{class(Class, "example.com/other", "")}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := len(desired(t, State{Ingresses: []*networkingv1.Ingress{of(c.class)}, Classes: c.classes}).Served) == 1; got != c.want {
				t.Errorf("served: %v", got)
			}
		})
	}
}

func TestCertificatesAreMatchedToHosts(t *testing.T) {
	secret := func(data map[string][]byte) *corev1.Secret { return &corev1.Secret{Data: data} }
	good, wild := tlsSecret(t, "h.example"), tlsSecret(t, "*.G.example")
	for _, c := range []struct {
		name, host string
		tls        networkingv1.IngressTLS
		secret     *corev1.Secret
		want       bool
		findings   string
	}{
		{"for a host", "h.example", networkingv1.IngressTLS{Hosts: []string{"H.example"}, SecretName: "s"}, good, true, ""},
		{"for a wildcard", "h.example", networkingv1.IngressTLS{Hosts: []string{"*.example"}, SecretName: "s"}, good, true, ""},
		{"for all hosts", "h.example", networkingv1.IngressTLS{SecretName: "s"}, good, true, ""},
		{"of another host", "g.example", networkingv1.IngressTLS{Hosts: []string{"g.example"}, SecretName: "s"}, good, false, "a/x BadCertificate"},
		{"of another host, for all", "g.example", networkingv1.IngressTLS{SecretName: "s"}, good, false, "a/x BadCertificate"},
		{"of one of the hosts", "*.example", networkingv1.IngressTLS{Hosts: []string{"*.example"}, SecretName: "s"}, good, true, ""},
		{"of a wildcard", "a.g.example", networkingv1.IngressTLS{Hosts: []string{"a.g.example"}, SecretName: "s"}, wild, true, ""},
		{"of a wildcard that is not deep enough", "g.example", networkingv1.IngressTLS{Hosts: []string{"g.example"}, SecretName: "s"}, wild, false, "a/x BadCertificate"},
		{"for another host", "h.example", networkingv1.IngressTLS{Hosts: []string{"g.example"}, SecretName: "s"}, good, false, ""},
		{"no Secret", "h.example", networkingv1.IngressTLS{SecretName: "s"}, nil, false, "a/x BadCertificate"},
		{"a Secret of something else", "h.example", networkingv1.IngressTLS{SecretName: "s"}, secret(map[string][]byte{"a": {1}}), false, "a/x BadCertificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ing := ingress("a/x", 1, c.host+"/=w:80")
			ing.Spec.TLS = []networkingv1.IngressTLS{c.tls}
			name := types.NamespacedName{Namespace: "a", Name: "s"}
			secrets := map[types.NamespacedName]*corev1.Secret{}
			if c.secret != nil {
				secrets[name] = c.secret
			}
			r := desired(t, State{Ingresses: []*networkingv1.Ingress{ing}, Secrets: secrets})
			var h table.Host
			testenv.NoError(t, json.Unmarshal(r.Sections[table.HostKey(table.SiteIngress, c.host)], &h))
			if got := h.Certificate == table.CertificateKey("a", "s"); got != c.want {
				t.Errorf("the host has the certificate %q", h.Certificate)
			}
			testenv.True(t, r.Wanted[name], "the Secret is not asked for")
			testenv.Equal(t, findings(r), c.findings, "findings:")
		})
	}
}

// keyPair is a certificate with its key, in PEM.
func keyPair(t *testing.T, hosts ...string) (chain, key []byte) {
	t.Helper()
	ca := testenv.Must(testca.New(t.TempDir()))(t)
	files, err := ca.Issue("leaf", hosts...)
	testenv.NoError(t, err)
	if chain, err = os.ReadFile(files.Cert); err == nil {
		key, err = os.ReadFile(files.Key)
	}
	testenv.NoError(t, err)
	return chain, key
}

func tlsSecret(t *testing.T, host string) *corev1.Secret {
	t.Helper()
	chain, key := keyPair(t, host)
	return &corev1.Secret{Data: map[string][]byte{corev1.TLSCertKey: chain, corev1.TLSPrivateKeyKey: key}}
}

func TestMissingServicesAreReportedAsFindings(t *testing.T) {
	external := &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "w.example",
		Ports: []corev1.ServicePort{{Port: 80}}}}
	web := &corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}
	r := desired(t, State{
		Ingresses: []*networkingv1.Ingress{ingress("a/x", 1, "h/1=web:80", "h/2=web:http", "h/3=web:81", "h/4=web:grpc", "h/5=none:80", "h/6=elsewhere:80")},
		Service: func(namespace, name string) *corev1.Service {
			if namespace == "a" && name == "web" {
				return web
			}
			if name == "elsewhere" {
				return external
			}
			return nil
		},
	})
	if got, want := findings(r), "a/x BadBackend; a/x BadBackend; a/x BadBackend; a/x Unsupported"; got != want {
		t.Errorf("findings: %s", got)
	}
}

// TestOrderChangesNothing compiles the same objects in many orders.
func TestOrderChangesNothing(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var all []*networkingv1.Ingress
	for i := range 60 {
		all = append(all, ingress(fmt.Sprintf("n%d/i%d", i%3, i), i/2, fmt.Sprintf("h%d/p%d=s:80", i%5, i%7), fmt.Sprintf("h%d=/p%d=s%d:80", i%4, i%3, i)))
	}
	want := desired(t, State{Ingresses: all})
	for range 20 {
		random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		got := desired(t, State{Ingresses: all})
		if d := table.Diff(want.Sections, got.Sections); len(d) > 0 {
			t.Fatalf("%d sections differ, such as %s", len(d), d[0].Key)
		}
		testenv.Require(t, findings(want) == findings(got), "findings differ")
	}
}

// FuzzDesired looks for an object that ends the program.
func FuzzDesired(f *testing.F) {
	ing, err := json.Marshal(ingress("a/x", 1, "h/p=s:80"))
	testenv.NoError(f, err)
	f.Add(ing)
	for _, value := range []string{"true", "/$2", "(((", "10.0.0.0/8, x", "https://$host/x", "a/b", "\x00\r\n", "-1", "5m", "cookie"} {
		for _, class := range []string{"nginx", Class} {
			i := ingress("a/x", 1, "h/p(.*)=s:80", "/q/=s:80")
			i.Spec.IngressClassName = &class
			for _, a := range Annotations {
				if a.Support == Done {
					i.Annotations[nginxPrefix+a.Name] = value
				}
			}
			ing, err = json.Marshal(i)
			testenv.NoError(f, err)
			f.Add(ing)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var i networkingv1.Ingress
		if json.Unmarshal(text, &i) != nil {
			return
		}
		testenv.Check(t,
			testenv.Err(Desired(State{Ingresses: []*networkingv1.Ingress{&i}, Secrets: map[types.NamespacedName]*corev1.Secret{}})))
	})
}
