// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// messages are the findings of an Ingress, of one reason.
func messages(r Result, name, reason string) string {
	namespace, name, _ := strings.Cut(name, "/")
	var out []string
	for _, f := range r.Findings[types.NamespacedName{Namespace: namespace, Name: name}] {
		if f.Reason == reason {
			out = append(out, f.Field+": "+f.Message)
		}
	}
	return strings.Join(out, "; ")
}

// TestTargetsThatProxiesDoNotReachAreFindings: Services and addresses of authentication servers, mirrors and default
// backends, and endpoints of Services.
func TestTargetsThatProxiesDoNotReachAreFindings(t *testing.T) {
	web := &corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}
	external := &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName}}
	for _, c := range []struct{ name, annotation, value, reason, want string }{
		{"a good auth-url", "auth-url", "http://web.a.svc/x", "", ""},
		{"an auth-url's missing Service", "auth-url", "http://none.a.svc/x", ReasonService, "auth-url: there is no Service none"},
		{"an auth-url's missing port", "auth-url", "http://web.a.svc.cluster.local:81/x", ReasonService, "auth-url: the Service web has no port 81"},
		{"an auth-url's ExternalName", "auth-url", "http://outside.a.svc/x", ReasonUnsupported, "auth-url: the Service outside is of the type ExternalName"},
		{"an auth-url at loopback", "auth-url", "http://127.0.0.1:4180/x", ReasonUnreachable, "auth-url: the host 127.0.0.1:4180 is an address"},
		{"an auth-url at loopback of IPv6", "auth-url", "http://[::1]/x", ReasonUnreachable, "auth-url: the host [::1] is an address"},
		{"an auth-url at a Service's address", "auth-url", "https://10.43.0.7/x", ReasonUnreachable, "auth-url: the host 10.43.0.7 is an address"},
		{"an auth-url at localhost", "auth-url", "http://localhost/x", ReasonUnreachable, "auth-url: the host localhost"},
		{"an auth-url outside", "auth-url", "https://192.0.2.1/x", "", ""},
		{"an auth-url of this ingress", "auth-url", "https://auth.example/x", ReasonUnreachable, "auth-url: this ingress serves the host auth.example"},
		{"an auth-url of this ingress' wildcard", "auth-url", "https://x.wild.example/x", ReasonUnreachable, "auth-url: this ingress serves the host x.wild.example"},
		{"a good mirror", "mirror-target", "http://web.a.svc$request_uri", "", ""},
		{"a mirror's missing Service", "mirror-target", "http://none.a.svc$request_uri", ReasonService, "mirror-target: there is no Service none"},
		{"a mirror at a local address", "mirror-target", "http://169.254.169.254/x", ReasonUnreachable, "mirror-target: the host 169.254.169.254"},
		{"a mirror of this ingress", "mirror-target", "https://auth.example$request_uri", ReasonUnreachable, "mirror-target: this ingress serves"},
		{"a missing default-backend", "default-backend", "none", ReasonService, "default-backend: there is no Service none"},
		{"a good default-backend", "default-backend", "web", "", ""},
		{"endpoints", "app-root", "/x", ReasonUnreachable, "spec.rules: the Service barred has endpoints at 10.43.0.9:80"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ing := ingress("a/x", 1, "h.example/=web:80")
			if c.name == "endpoints" {
				ing = ingress("a/x", 1, "h.example/=barred:80")
			}
			ing.Annotations[nginxPrefix+c.annotation] = c.value
			r := desired(t, State{
				Ingresses: []*networkingv1.Ingress{ing, ingress("b/y", 1, "auth.example/=web:80", "*.wild.example/=web:80")}, AtNodes: true,
				Service: func(_, name string) *corev1.Service {
					return map[string]*corev1.Service{"web": web, "outside": external, "barred": web}[name]
				},
				OwnsAddress: func(a netip.Addr) bool { return netip.MustParsePrefix("10.43.0.0/16").Contains(a) },
				Barred: func(_, name string) []string {
					if name == "barred" {
						return []string{"10.43.0.9:80"}
					}
					return nil
				},
			})
			if c.reason == "" {
				testenv.Equal(t, findings(r), "", "the findings are")
				return
			}
			got := strings.ReplaceAll(messages(r, "a/x", c.reason), nginxPrefix, "")
			testenv.True(t, strings.HasPrefix(got, c.want) && !strings.Contains(got, "; "), "the findings are %s: %q", findings(r), got)
		})
	}
	good := ingress("a/x", 1, "h.example/=web:80")
	good.Annotations[nginxPrefix+"auth-url"] = "https://auth.example/x"
	r := desired(t, State{Ingresses: []*networkingv1.Ingress{good, ingress("b/y", 1, "auth.example/=web:80")}})
	testenv.Equal(t, findings(r), "", "with addresses of a pool the findings are")
}

// lasting makes a Secret with a certificate of these names, valid from and until times.
func lasting(t *testing.T, from, until time.Time, names ...string) *corev1.Secret {
	t.Helper()
	key := testenv.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: names, NotBefore: from, NotAfter: until, IsCA: true, BasicConstraintsValid: true}
	chain := testenv.Must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)
	text := testenv.Must(x509.MarshalPKCS8PrivateKey(key))(t)
	pemOf := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	return &corev1.Secret{Data: map[string][]byte{
		corev1.TLSCertKey: pemOf("CERTIFICATE", chain), corev1.TLSPrivateKeyKey: pemOf("PRIVATE KEY", text), "ca.crt": pemOf("CERTIFICATE", chain),
	}}
}

// TestEndsOfCertificatesAreFindings: of hosts, of authorities of clients, and of what backends are shown. The next time
// at which a finding changes is returned.
func TestEndsOfCertificatesAreFindings(t *testing.T) {
	const day = 24 * time.Hour
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	issued := withAnnotation(withTLS(ingress("a/x", 1, "h.example/=web:80"), "s", "h.example"), acmeAnnotation, "true")
	guarded := withAnnotation(ingress("a/x", 1, "h.example/=web:80"), nginxPrefix+"auth-tls-secret", "a/s")
	shown := withAnnotation(ingress("a/x", 1, "h.example/=web:80"), nginxPrefix+"proxy-ssl-secret", "a/s")
	for _, c := range []struct {
		name       string
		ing        *networkingv1.Ingress
		life, left time.Duration
		made       bool // by our ACME
		want       string
		next       time.Duration
	}{
		{"valid for long", nil, 365 * day, 100 * day, false, "", 90 * day},
		{"ends in ten days", nil, 365 * day, 10 * day, false, ReasonExpiring + " spec.tls", 10 * day},
		{"of a short life", nil, 10 * day, 2 * day, false, "", day},
		{"of a short life, near its end", nil, 10 * day, day / 2, false, ReasonExpiring + " spec.tls", day / 2},
		{"has ended", nil, 365 * day, -1, false, ReasonExpired + " spec.tls", 0},
		{"is renewed by ACME", issued, 90 * day, day, true, "", 0},
		{"has ended and is renewed by ACME", issued, 90 * day, -1, true, "", 0},
		{"a user's, which ACME leaves alone", issued, 90 * day, -1, false, ReasonExpired + " spec.tls", 0},
		{"authorities", guarded, 365 * day, day, false, ReasonExpiring + " auth-tls-secret", day},
		{"authorities that have ended", guarded, 365 * day, -1, false, ReasonExpired + " auth-tls-secret", 0},
		{"for backends", shown, 365 * day, -1, false, ReasonExpired + " proxy-ssl-secret", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			ing := c.ing
			if ing == nil {
				ing = withTLS(ingress("a/x", 1, "h.example/=web:80"), "s")
			}
			ing = withAnnotation(ing, nginxPrefix+"backend-protocol", "HTTPS")
			s := lasting(t, now.Add(c.left-c.life), now.Add(c.left), "h.example")
			if c.made {
				s.Annotations = map[string]string{MadeByACME: "x"}
			}
			r := desired(t, State{Ingresses: []*networkingv1.Ingress{ing}, Account: &corev1.Secret{}, Now: now,
				Secrets: map[types.NamespacedName]*corev1.Secret{{Namespace: "a", Name: "s"}: s}})
			var got []string
			for _, f := range r.Findings[types.NamespacedName{Namespace: "a", Name: "x"}] {
				got = append(got, f.Reason+" "+strings.TrimPrefix(f.Field, nginxPrefix))
			}
			testenv.Equal(t, strings.Join(got, "; "), c.want, "the findings are")
			next := time.Duration(0)
			if !r.Next.IsZero() {
				next = r.Next.Sub(now)
			}
			testenv.True(t, (next-c.next).Abs() <= time.Second, "the next change is in %s, want %s", next, c.next) // certificates count seconds
		})
	}
}

func withTLS(ing *networkingv1.Ingress, secret string, hosts ...string) *networkingv1.Ingress {
	ing.Spec.TLS = append(ing.Spec.TLS, networkingv1.IngressTLS{Hosts: hosts, SecretName: secret})
	return ing
}

// TestRedirectFromWWWHasACertificate: that of the Ingress for the other name, if it has one, and else a finding.
func TestRedirectFromWWWHasACertificate(t *testing.T) {
	now := time.Now()
	of := func(names ...string) *corev1.Secret {
		return lasting(t, now.Add(-time.Hour), now.Add(time.Hour), names...)
	}
	for _, c := range []struct {
		name string
		tls  []networkingv1.IngressTLS
		want string // the certificate; "" for none
		says string
	}{
		{"none", nil, "", ""},
		{"of both names", []networkingv1.IngressTLS{{Hosts: []string{"h.example", "www.h.example"}, SecretName: "both"}}, "both", ""},
		{"of both names, which lists one", []networkingv1.IngressTLS{{Hosts: []string{"h.example"}, SecretName: "both"}}, "both", ""},
		{"each its own", []networkingv1.IngressTLS{{Hosts: []string{"h.example"}, SecretName: "one"}, {Hosts: []string{"www.h.example"}, SecretName: "www"}}, "www", ""},
		{"of one name", []networkingv1.IngressTLS{{Hosts: []string{"h.example"}, SecretName: "one"}}, "", "no certificate for www.h.example"},
		{"of one name, which lists both", []networkingv1.IngressTLS{{Hosts: []string{"h.example", "www.h.example"}, SecretName: "one"}}, "", "of other names than www.h.example"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ing := withAnnotation(ingress("a/x", 1, "h.example/=web:80"), nginxPrefix+"from-to-www-redirect", "true")
			ing.Spec.TLS = c.tls
			secrets := map[types.NamespacedName]*corev1.Secret{}
			for name, s := range map[string]*corev1.Secret{"both": of("h.example", "www.h.example"), "one": of("h.example"), "www": of("www.h.example")} {
				secrets[types.NamespacedName{Namespace: "a", Name: name}] = s
			}
			r := desired(t, State{Ingresses: []*networkingv1.Ingress{ing}, Secrets: secrets})
			got := string(r.Sections[table.HostKey(table.SiteIngress, "www.h.example")])
			testenv.True(t, (c.want == "") == !strings.Contains(got, `"certificate"`) && strings.Contains(got, c.want), "the host is %s", got)
			all := messages(r, "a/x", ReasonSecret)
			testenv.True(t, (c.says == "") == (all == "") && strings.Contains(all, c.says), "the findings are %q", all)
		})
	}
}
