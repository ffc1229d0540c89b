// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/ingress/table"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestExpressionsAreBounded: an expression that would take seconds for a path, or means something else inside another
// one, closes what it may have matched.
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

// TestTableIsBounded: small objects that multiply do not make a table that no proxy can hold, and leave room for other
// namespaces.
func TestTableIsBounded(t *testing.T) {
	names := func(n int) string {
		var out []string
		for i := range n {
			out = append(out, fmt.Sprintf("a%d", i))
		}
		return strings.Join(out, ",")
	}
	networks := func(n int) string {
		var out []string
		for i := range n {
			out = append(out, fmt.Sprintf("10.%d.%d.1", i/256, i%256))
		}
		return strings.Join(out, ",")
	}
	for name, annotations := range map[string]map[string]string{
		"aliases": {"server-alias": names(10_000)}, "networks": {"whitelist-source-range": networks(10_000)}, "paths": {},
		"names that are none": {"server-alias": strings.ReplaceAll(names(10_000), "a", "_")},
	} {
		t.Run(name, func(t *testing.T) {
			var all []*networkingv1.Ingress
			for k := range 8 {
				i := ingress(fmt.Sprintf("bad/%d", k), 10)
				for p := range 2_000 {
					i.Spec.Rules = append(i.Spec.Rules, ingress("", 0, fmt.Sprintf("h%d/%d=s:80", k, p)).Spec.Rules...)
				}
				for key, value := range annotations {
					i.Annotations[nginxPrefix+key] = value
				}
				all = append(all, i)
			}
			r := desired(t, State{Ingresses: append(all, ingress("good/x", 1, "good/=s:80"))})
			size := 0
			for _, value := range r.Sections {
				size += len(value)
			}
			testenv.False(t, size > maxTable/textFactor, "the table has %d bytes", size)
			if got := r.Sections[table.HostKey(table.SiteIngress, "good")]; got == nil {
				t.Error("another namespace is not served")
			}
			for who, all := range r.Findings {
				testenv.False(t, len(all) > maxFindings+1, "%s has %d findings", who, len(all))
			}
		})
	}
}

// TestSecretsAreBounded: a namespace whose Secrets take too much memory in the proxies loses those of its youngest
// Ingresses. Other namespaces lose none.
func TestSecretsAreBounded(t *testing.T) {
	chain, key := keyPair(t, "*.bad", "*.good")
	comment := bytes.Repeat([]byte("#"+strings.Repeat("x", 62)+"\n"), 900) // PEM allows it beside blocks
	large := slices.Concat(chain, comment)
	file := []byte(strings.Repeat("0123456789abcdef:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\n", 10)) // one user
	var users []byte
	for i := range 100 {
		users = fmt.Appendf(users, "%07000d:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\n", i)
	}
	for name, kind := range map[string]struct {
		data     map[string][]byte
		number   int
		ask      func(*networkingv1.Ingress, string)
		section  func(namespace, name string) string
		smallest map[string][]byte
	}{
		"certificates": {
			map[string][]byte{corev1.TLSCertKey: large, corev1.TLSPrivateKeyKey: key}, 300,
			func(i *networkingv1.Ingress, secret string) {
				i.Spec.TLS = []networkingv1.IngressTLS{{SecretName: secret}}
			},
			table.CertificateKey, map[string][]byte{corev1.TLSCertKey: chain, corev1.TLSPrivateKeyKey: key},
		},
		"authorities": {
			map[string][]byte{keyAuthorities: large}, 300,
			func(i *networkingv1.Ingress, secret string) {
				i.Annotations[nginxPrefix+"auth-tls-secret"] = i.Namespace + "/" + secret
			},
			func(namespace, name string) string { return table.AuthoritiesKey("secret", namespace, name) },
			map[string][]byte{keyAuthorities: chain},
		},
		"users": {
			map[string][]byte{"auth": users}, 40,
			func(i *networkingv1.Ingress, secret string) {
				i.Annotations[nginxPrefix+"auth-type"], i.Annotations[nginxPrefix+"auth-secret"] = "basic", secret
			},
			func(namespace, name string) string { return table.UsersKey(namespace, name, authFile) },
			map[string][]byte{"auth": file},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var all []*networkingv1.Ingress
			secrets := map[types.NamespacedName]*corev1.Secret{}
			add := func(namespace string, age int, data map[string][]byte) {
				name := fmt.Sprintf("s%d", age)
				i := ingress(namespace+"/"+name, age, fmt.Sprintf("h%d.%s/=s:80", age, namespace))
				kind.ask(i, name)
				all = append(all, i)
				secrets[types.NamespacedName{Namespace: namespace, Name: name}] = &corev1.Secret{Data: data}
			}
			for age := range kind.number {
				add("bad", age+2, kind.data)
			}
			add("good", 1, kind.smallest) // the youngest of all
			r := desired(t, State{Ingresses: all, Secrets: secrets})
			has := func(namespace string, age int) bool {
				return r.Sections[kind.section(namespace, fmt.Sprintf("s%d", age))] != nil
			}
			testenv.True(t, has("good", 1), "another namespace lost its Secret")
			left := 0
			for age := range kind.number {
				if !has("bad", age+2) {
					left++
				} else if age+1 < kind.number && !has("bad", age+3) {
					t.Errorf("the Ingress s%d lost its Secret, and a younger one did not", age+3)
				}
				who := types.NamespacedName{Namespace: "bad", Name: fmt.Sprintf("s%d", age+2)}
				says := slices.ContainsFunc(r.Findings[who], func(f Finding) bool { return f.Reason == ReasonTooLarge })
				if says == has("bad", age+2) {
					t.Errorf("%s has the findings %v", who, r.Findings[who])
				}
			}
			testenv.False(t, left == 0 || left == kind.number, "%d of %d Secrets are left out", left, kind.number)
		})
	}
}

// TestAliasHasTheRoutesOfItsNamespace: who shares a host gives the others' routes no other name, and not their
// certificate.
func TestAliasHasTheRoutesOfItsNamespace(t *testing.T) {
	mine := ingress("b/mine", 1, "h/mine=s:80")
	mine.Annotations[nginxPrefix+"server-alias"] = "alias"
	foreignIngress := ingress("a/theirs", 2, "h/=s:80")
	foreignIngress.Spec.TLS = []networkingv1.IngressTLS{{SecretName: "cert"}}
	r := desired(t, State{Ingresses: []*networkingv1.Ingress{mine, foreignIngress}})
	if got, want := text(t, r.Sections), "alias/mine Prefix b/s/80\nh/mine Prefix b/s/80\nh/ Prefix a/s/80\n"; got != want {
		t.Errorf("the table is\n%s", got)
	}
	if got := string(r.Sections[table.HostKey(table.SiteIngress, "alias")]); strings.Contains(got, "certificate") {
		t.Errorf("the alias is %s", got)
	}
}

// TestOnlyChallengesAreOpen: a path that begins like those of ACME's challenges keeps its authentication.
func TestOnlyChallengesAreOpen(t *testing.T) {
	for path, open := range map[string]bool{
		"/.well-known/acme-challenge": true, "/.well-known/acme-challenge/": true, "/.well-known/acme-challenge/x": true,
		"/.well-known/acme-challenges-of-others": false, "/.well-known/acme-challenge/|/admin": false, "/.well-known/acme-challenge|/admin": false,
	} {
		i := ingress("a/x", 1, "h"+path+"=s:80")
		i.Annotations[nginxPrefix+"auth-url"] = "http://s.a.svc/"
		var h table.Host
		if err := json.Unmarshal(desired(t, State{Ingresses: []*networkingv1.Ingress{i}}).Sections[table.HostKey(table.SiteIngress, "h")], &h); err != nil {
			t.Fatal(err)
		}
		testenv.True(t, (h.Routes[0].Policy == nil || h.Routes[0].Policy.External == nil) == open, "%s: %+v", path, h.Routes[0].Policy)
	}
}

// An attacker who writes Ingresses names a cookie or its domain so that it is long, or has another attribute behind it;
// the proxies must not send that.
func TestCookiesNameAndDomainAreBounded(t *testing.T) {
	for _, c := range []struct {
		is   func(string) bool
		text string
		want bool
	}{
		{isCookieName, strings.Repeat("a", 128), true}, {isCookieName, strings.Repeat("a", 129), false},
		{isCookieName, "", false}, {isCookieName, "a;b", false}, {isCookieName, "a\n", false},
		{isCookieDomain, strings.Repeat("a", 253), true}, {isCookieDomain, strings.Repeat("a", 254), false},
		{isCookieDomain, "." + strings.Repeat("a", 253), true}, {isCookieDomain, "." + strings.Repeat("a", 254), false},
		{isCookieDomain, "", false}, {isCookieDomain, "a_b", false},
	} {
		testenv.Equal(t, c.is(c.text), c.want, "%.20q, %d characters", c.text, len(c.text))
	}
}

// TestHostsOfCertificatesAreBounded: a namespace's hosts of spec.tls take no more than it may have, whether they are
// ordered by ACME or not, and other namespaces' certificates are ordered.
func TestHostsOfCertificatesAreBounded(t *testing.T) {
	const hosts, each = 38_000, 100
	var all []*networkingv1.Ingress
	for k := range 4 {
		i := ingress(fmt.Sprintf("bad/%d", k), 10-k, fmt.Sprintf("h%d.bad.example/=s:80", k))
		i.Annotations[acmeAnnotation] = "true"
		for s := range hosts / each {
			names := networkingv1.IngressTLS{SecretName: fmt.Sprintf("s%d-%d", k, s)}
			for h := range each {
				names.Hosts = append(names.Hosts, fmt.Sprintf("h%d.s%d.k%d.bad.example", h, s, k))
			}
			i.Spec.TLS = append(i.Spec.TLS, names)
		}
		all = append(all, i)
	}
	good := ingress("good/x", 1, "good.example/=s:80")
	good.Annotations[acmeAnnotation] = "true"
	good.Spec.TLS = []networkingv1.IngressTLS{{SecretName: "cert", Hosts: []string{"good.example"}}}
	r := desired(t, State{Ingresses: append(all, good), Account: &corev1.Secret{Data: map[string][]byte{ThumbprintKey: []byte("print")}}})
	answered, ordered, isGood := 0, 0, false
	for key := range r.Sections {
		if table.Kind(key) == table.KindChallenges {
			answered++
		}
	}
	for _, o := range r.Orders {
		ordered += len(o.Hosts)
		isGood = isGood || o.Secret.Namespace == "good"
	}
	testenv.True(t, isGood, "the certificate of another namespace is not ordered")
	testenv.True(t, ordered > each && ordered <= maxOrdered+1 && answered == ordered, "%d hosts are ordered, and challenges of %d are answered", ordered, answered)
	testenv.True(t, has(r, "bad/0", ReasonCertificate, "at most"), "the findings are %v", r.Findings)
	testenv.True(t, has(r, "bad/0", ReasonTooLarge, "spec.tls"), "the findings are %v", r.Findings)
}

// TestNamesOfCertificatesAreCharged: also hosts and Secrets that no certificate is ordered for count.
func TestNamesOfCertificatesAreCharged(t *testing.T) {
	var all []*networkingv1.Ingress
	for k := range 20 {
		i := ingress(fmt.Sprintf("bad/%02d", k), 100-k, fmt.Sprintf("h%d.bad.example/=s:80", k))
		for s := range maxTLS / 2 {
			i.Spec.TLS = append(i.Spec.TLS, networkingv1.IngressTLS{SecretName: fmt.Sprintf("s%d", s), Hosts: []string{fmt.Sprintf("h%d.k%d.bad.example", s, k)}})
		}
		all = append(all, i)
	}
	r := desired(t, State{Ingresses: append(all, ingress("good/x", 1, "good.example/=s:80"))})
	testenv.False(t, has(r, "bad/00", ReasonTooLarge, ""), "the oldest has the findings %v", r.Findings)
	testenv.True(t, has(r, "bad/19", ReasonTooLarge, "not served"), "the youngest has the findings %v", r.Findings)
	testenv.False(t, r.Sections[table.HostKey(table.SiteIngress, "good.example")] == nil, "another namespace is not served")
}

// TestSecretsOfManyIngressesAreReadOnce: what reading one Secret takes does not grow with the Ingresses that name it.
func TestSecretsOfManyIngressesAreReadOnce(t *testing.T) {
	var auth strings.Builder
	for n := range 2000 {
		fmt.Fprintf(&auth, "user%d:$apr1$abcdefgh$abcdefghijklmnopqrstu.\n", n)
	}
	chain, _ := keyPair(t, "a.example")
	authorities := map[string][]byte{keyAuthorities: bytes.Repeat(chain, (60<<10)/len(chain))}
	for name, c := range map[string]struct {
		annotations map[string]string
		data        map[string][]byte
	}{
		"users":                    {map[string]string{"auth-type": "basic", "auth-secret": "secret"}, map[string][]byte{"auth": []byte(auth.String())}},
		"authorities for clients":  {map[string]string{"auth-tls-secret": "a/secret"}, authorities},
		"authorities for backends": {map[string]string{"proxy-ssl-secret": "a/secret", "proxy-ssl-verify": "on", "proxy-ssl-name": "b.example"}, authorities},
	} {
		s := &corev1.Secret{Data: c.data}
		allocations := func(ingresses int) float64 {
			s := State{Secrets: map[types.NamespacedName]*corev1.Secret{{Namespace: "a", Name: "secret"}: s}}
			for n := range ingresses {
				i := ingress(fmt.Sprintf("a/i%d", n), 1, fmt.Sprintf("h%d/=s:80", n))
				for name, value := range c.annotations {
					i.Annotations[nginxPrefix+name] = value
				}
				s.Ingresses = append(s.Ingresses, i)
			}
			return testing.AllocsPerRun(1, func() { testenv.Must(Desired(s))(t) })
		}
		one, many := allocations(1), allocations(20)
		testenv.True(t, many < 5*one, "%s: compiling one Ingress makes %.0f allocations, 20 of them %.0f", name, one, many)
	}
}
