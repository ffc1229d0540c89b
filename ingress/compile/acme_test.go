// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// acme makes an Ingress that asks for certificates; each entry is "secret=host,host".
func acme(name string, age int, entries ...string) *networkingv1.Ingress {
	ing := ingress(name, age)
	ing.Annotations[acmeAnnotation] = "true"
	for _, text := range entries {
		secret, hosts, _ := strings.Cut(text, "=")
		t := networkingv1.IngressTLS{SecretName: secret}
		if hosts != "" {
			t.Hosts = strings.Split(hosts, ",")
		}
		ing.Spec.TLS = append(ing.Spec.TLS, t)
	}
	return ing
}

func withAnnotation(ing *networkingv1.Ingress, name, value string) *networkingv1.Ingress {
	ing.Annotations[name] = value
	return ing
}

func TestCertificatesAreOrderedForAnnotatedIngresses(t *testing.T) {
	many := make([]string, maxNames+1)
	for i := range many {
		many[i] = fmt.Sprintf("h%d.example", i)
	}
	for _, c := range []struct {
		name      string
		ingresses []*networkingv1.Ingress
		orders    string // "secret: hosts by ingresses"
		findings  string
	}{
		{"one", []*networkingv1.Ingress{acme("shop/web", 1, "cert=Web.example.,www.web.example")}, "shop/cert: web.example www.web.example by web", ""},
		{"without the annotation", []*networkingv1.Ingress{withAnnotation(acme("shop/web", 1, "cert=web.example"), acmeAnnotation, "false")}, "", ""},
		{"cert-manager's", []*networkingv1.Ingress{withAnnotation(acme("shop/web", 1, "cert=web.example"), "cert-manager.io/cluster-issuer", "le")}, "", ""},
		{"two Ingresses with one Secret", []*networkingv1.Ingress{acme("shop/b", 1, "cert=b.example"), acme("shop/a", 2, "cert=a.example,b.example")},
			"shop/cert: a.example b.example by a b", ""},
		{"two Secrets", []*networkingv1.Ingress{acme("shop/web", 1, "one=a.example", "two=b.example")}, "shop/one: a.example by web; shop/two: b.example by web", ""},
		{"a wildcard beside a host", []*networkingv1.Ingress{acme("shop/web", 1, "cert=*.web.example,web.example")}, "shop/cert: web.example by web", "shop/web NotOrdered"},
		{"names of no internet", []*networkingv1.Ingress{acme("shop/web", 1, "cert=localhost,a_b.example")}, "shop/cert:  by web", "shop/web NotOrdered; shop/web NotOrdered"},
		{"no hosts", []*networkingv1.Ingress{acme("shop/web", 1, "cert=")}, "shop/cert:  by web", "shop/web NotOrdered"},
		{"too many", []*networkingv1.Ingress{acme("shop/web", 1, "cert="+strings.Join(many, ","))}, "", "shop/web NotOrdered"},
		{"another namespace's host", []*networkingv1.Ingress{acme("evil/web", 1, "cert=web.example,evil.example"), ingress("shop/web", 2, "web.example/=web:80")},
			"evil/cert: evil.example by web", "evil/web NotOrdered"},
		{"another namespace's host by its certificate", []*networkingv1.Ingress{acme("evil/web", 1, "cert=web.example"), acme("shop/web", 2, "cert=web.example")},
			"evil/cert:  by web; shop/cert: web.example by web", "evil/web NotOrdered"},
	} {
		t.Run(c.name, func(t *testing.T) {
			account := &corev1.Secret{Data: map[string][]byte{ThumbprintKey: []byte("thumb")}}
			r := desired(t, State{Ingresses: c.ingresses, Account: account, Secrets: map[types.NamespacedName]*corev1.Secret{}})
			var out []string
			for _, o := range r.Orders {
				var by []string
				for _, ing := range o.Ingresses {
					by = append(by, ing.Name)
				}
				out = append(out, fmt.Sprintf("%s: %s by %s", o.Secret, strings.Join(o.Hosts, " "), strings.Join(by, " ")))
				for _, host := range o.Hosts {
					var has table.Challenges
					if err := json.Unmarshal(r.Sections[table.ChallengesKey(host)], &has); err != nil || has.Thumbprint != "thumb" {
						t.Errorf("the challenges of %s: %v %v", host, has, err)
					}
				}
			}
			testenv.Equal(t, strings.Join(out, "; "), c.orders, "the orders are")
			var here []string
			for _, f := range strings.Split(findings(r), "; ") {
				if !strings.HasSuffix(f, ReasonSecret) { // of Secrets that are cert-manager's or of no owner
					here = append(here, f)
				}
			}
			testenv.Equal(t, strings.Join(here, "; "), c.findings, "the findings are")
		})
	}
}

// TestOrdersOfHostsThatBelongToNamespaces: where a host belongs to one namespace, no other one gets a certificate for
// it, whatever it names in spec.tls.
func TestOrdersOfHostsThatBelongToNamespaces(t *testing.T) {
	for _, c := range []struct {
		name      string
		ingresses []*networkingv1.Ingress
		orders    string
	}{
		{"within another's wildcard", []*networkingv1.Ingress{ingress("shop/web", 2, "*.shop.example/=web:80"), acme("evil/web", 1, "cert=pay.shop.example")}, "evil/cert: "},
		{"a certificate alone before another's rule", []*networkingv1.Ingress{
			acme("evil/web", 2, "cert=shop.example"), withRule(acme("shop/web", 1, "cert=shop.example"), "shop.example"),
		}, "evil/cert: ; shop/cert: shop.example"},
		{"another's alias", []*networkingv1.Ingress{
			withAnnotation(ingress("shop/web", 2, "shop.example/=web:80"), nginxPrefix+"server-alias", "alias.example"), acme("evil/web", 3, "cert=alias.example"),
		}, "evil/cert: "},
		{"a host before another's wildcard", []*networkingv1.Ingress{
			withRule(acme("shop/web", 2, "cert=pay.shop.example"), "pay.shop.example"), ingress("evil/web", 1, "*.shop.example/=web:80"),
		}, "shop/cert: pay.shop.example"},
		{"a host that no rule has", []*networkingv1.Ingress{acme("shop/web", 1, "cert=shop.example")}, "shop/cert: shop.example"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := desired(t, State{Ingresses: c.ingresses, Rules: Rules{HostOwner: true}, Secrets: map[types.NamespacedName]*corev1.Secret{}})
			var out []string
			for _, o := range r.Orders {
				out = append(out, fmt.Sprintf("%s: %s", o.Secret, strings.Join(o.Hosts, " ")))
			}
			testenv.Equal(t, strings.Join(out, "; "), c.orders, "the orders are")
		})
	}
}

func withRule(ing *networkingv1.Ingress, host string) *networkingv1.Ingress {
	ing.Spec.Rules = append(ing.Spec.Rules, ingress("a/b", 0, host+"/=web:80").Spec.Rules...)
	return ing
}

// TestSecretThatIsOrdered: while a certificate is ordered, its missing Secret is no mistake of the user's; without an
// account the event says what the annotation needs.
func TestSecretThatIsOrdered(t *testing.T) {
	s := State{Ingresses: []*networkingv1.Ingress{acme("shop/web", 1, "cert=web.example")}, Account: &corev1.Secret{}, Secrets: map[types.NamespacedName]*corev1.Secret{}}
	testenv.Equal(t, findings(desired(t, s)), "", "findings:")
	s.Account = nil
	all := desired(t, s).Findings[types.NamespacedName{Namespace: "shop", Name: "web"}]
	testenv.False(t, len(all) != 1 || !strings.Contains(all[0].Message, "--ingress-acme-email"), "findings without an account: %v", all)
	testenv.True(t, desired(t, s).Sections[table.ChallengesKey("web.example")] == nil, "challenges are answered without an account")
}

// TestChallengePathsBypassHostsPolicies: another solver's Ingress is served as it is, whatever redirects, restricts or
// authenticates the host.
func TestChallengePathsBypassHostsPolicies(t *testing.T) {
	const path = ".well-known/acme-challenge/tok"
	limits := map[string]string{
		"auth-type": "basic", "auth-secret": "users", "whitelist-source-range": "192.0.2.0/24", "denylist-source-range": "0.0.0.0/0", "limit-rps": "1",
		"force-ssl-redirect": "true", "permanent-redirect": "https://other.example/", "app-root": "/app", "auth-url": "https://auth.example/",
		"use-regex": "true", "satisfy": "any",
	}
	for _, class := range []string{Class, "nginx"} {
		for name, rules := range map[string][]string{
			"a solver of its own":      {"web.example/" + path + "=solver:8089"},
			"edited in the Ingress":    {"web.example/=web:80", "web.example/" + path + "=solver:8089"},
			"beside a long expression": {"web.example/(.*|" + strings.Repeat("x", 100) + ")=web:80", "web.example/" + path + "=solver:8089"},
		} {
			t.Run(class+" "+name, func(t *testing.T) {
				main, solver := ingress("shop/web", 2, "web.example/=web:80"), ingress("shop/solver", 1, rules...)
				for _, ing := range []*networkingv1.Ingress{main, solver} {
					ing.Spec.IngressClassName = &class
					for k, v := range limits {
						ing.Annotations[nginxPrefix+k] = v
					}
				}
				main.Spec.TLS = []networkingv1.IngressTLS{{Hosts: []string{"web.example"}, SecretName: "cert"}}
				r := desired(t, State{Ingresses: []*networkingv1.Ingress{main, solver}})
				var h table.Host
				testenv.NoError(t, json.Unmarshal(r.Sections[table.HostKey(table.SiteIngress, "web.example")], &h))
				first := h.Routes[0]
				if first.Object != "Ingress/shop/solver" || len(first.Backends) != 1 || first.Backends[0].Service != "solver" || first.Refused != "" {
					t.Errorf("the first route is %+v", first)
				}
				testenv.Equal(t, first.RedirectHTTPS, 0, "it redirects:")
				if p := first.Policy; p != nil && (p.Basic != nil || p.External != nil || p.Redirect != nil || p.AppRoot != "" || p.Allow != nil || p.Deny != nil || p.Limit != nil) {
					t.Errorf("its policy is %+v", *p)
				}
			})
		}
	}
}

// TestDefaultCertificateSection: the default certificate is in the table while an Ingress is served and it is one.
func TestDefaultCertificateSection(t *testing.T) {
	good := tlsSecret(t, "ingress.local")
	for _, c := range []struct {
		name   string
		secret *corev1.Secret
		served bool
		want   bool
	}{
		{"good", good, true, true}, {"without an Ingress", good, false, false}, {"missing", nil, true, false},
		{"no certificate", &corev1.Secret{Data: map[string][]byte{"tls.crt": []byte("x")}}, true, false},
	} {
		s := State{Default: c.secret}
		if c.served {
			s.Ingresses = []*networkingv1.Ingress{ingress("shop/web", 1, "web.example/=web:80")}
		}
		testenv.Equal(t, desired(t, s).Sections[table.DefaultCertificateKey] != nil, c.want, "%s: it is in the table:", c.name)
	}
}
