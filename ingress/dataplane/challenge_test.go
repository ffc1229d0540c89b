// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"testing"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const thumbprint = "LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ"

// ingressProxy is a proxy that serves the site of Ingress objects, and the address of its listener.
func ingressProxy(t *testing.T, secure bool, changes ...table.Change) (p *Proxy, address string) {
	p = testenv.Must(New(Options{Logger: quiet()}))(t)
	if problems := p.Apply(changes); len(problems) > 0 {
		t.Fatalf("the table has problems: %v", problems)
	}
	l := listen(t)
	testenv.Run(t, func(ctx context.Context) error { return p.Serve(ctx, table.SiteIngress, secure, l) })
	return p, l.Addr().String()
}

// TestChallengesAreAnswered: an authority gets the answer before redirects, authentication and source ranges, and
// no other client gets anything by it.
func TestChallengesAreAnswered(t *testing.T) {
	closed := &table.Policy{Allow: []string{"192.0.2.0/24"}, Basic: &table.Basic{Users: "users/n/s/auth-file", Realm: "r"}}
	_, address := ingressProxy(t, false,
		section(t, table.HostKey(table.SiteIngress, "shop.example"), table.Host{Routes: []table.Route{
			{Path: "/.well-known/acme-challenge/theirs", Kind: table.PathExact, Object: "Ingress/n/solver", Policy: &table.Policy{Redirect: &table.Redirect{Status: 302, Location: "http://solver.example/"}}},
			{Path: "/", Kind: table.PathPrefix, Object: "Ingress/n/web", RedirectHTTPS: 308, Policy: closed},
		}}),
		section(t, table.ChallengesKey("shop.example"), table.Challenges{Thumbprint: thumbprint}),
		section(t, table.ChallengesKey("bare.example"), table.Challenges{Thumbprint: thumbprint}),
		section(t, table.HostKey(table.SiteIngress, ""), table.Host{Routes: []table.Route{
			{Path: "/.well-known/acme-challenge/stolen", Kind: table.PathExact, Object: "Ingress/evil/x", Policy: &table.Policy{Redirect: &table.Redirect{Status: 302, Location: "http://evil.example/"}}},
		}}),
		section(t, table.HostKey(table.SiteIngress, "*.wild.example"), table.Host{Routes: []table.Route{
			{Path: "/.well-known/acme-challenge/stolen", Kind: table.PathExact, Object: "Ingress/evil/x", Policy: &table.Policy{Redirect: &table.Redirect{Status: 302, Location: "http://evil.example/"}}},
		}}),
		section(t, table.ChallengesKey("a.wild.example"), table.Challenges{Thumbprint: thumbprint}),
	)
	c := client(t, address, "http1")
	for _, one := range []struct {
		name, method, url string
		status            int
		text              string
	}{
		{"of a host", http.MethodGet, "http://shop.example/.well-known/acme-challenge/tok-en_1", 200, "tok-en_1." + thumbprint},
		{"of a host with a port and capitals", http.MethodGet, "http://Shop.Example:80/.well-known/acme-challenge/tok", 200, "tok." + thumbprint},
		{"of a host without routes", http.MethodGet, "http://bare.example/.well-known/acme-challenge/tok", 200, "tok." + thumbprint},
		{"only asked for", http.MethodHead, "http://shop.example/.well-known/acme-challenge/tok", 200, ""},
		{"of another host", http.MethodGet, "http://other.example/.well-known/acme-challenge/tok", 404, "no route for this host and path"},
		{"that another solver answers", http.MethodGet, "http://shop.example/.well-known/acme-challenge/theirs", 302, "this is served at http://solver.example/"},
		{"that the default host has", http.MethodGet, "http://bare.example/.well-known/acme-challenge/stolen", 200, "stolen." + thumbprint},
		{"that a wildcard has", http.MethodGet, "http://a.wild.example/.well-known/acme-challenge/stolen", 200, "stolen." + thumbprint},
		{"of the default host itself", http.MethodGet, "http://other.example/.well-known/acme-challenge/stolen", 302, "this is served at http://evil.example/"},
		{"posted", http.MethodPost, "http://bare.example/.well-known/acme-challenge/tok", 404, "no route for this host and path"},
		{"with a token that is none", http.MethodGet, "http://bare.example/.well-known/acme-challenge/%3Cscript%3E", 404, "no route for this host and path"},
		{"with more elements", http.MethodGet, "http://bare.example/.well-known/acme-challenge/a/b", 404, "no route for this host and path"},
		{"without a token", http.MethodGet, "http://bare.example/.well-known/acme-challenge/", 404, "no route for this host and path"},
	} {
		t.Run(one.name, func(t *testing.T) {
			req := testenv.Must(http.NewRequestWithContext(t.Context(), one.method, one.url, nil))(t)
			res := testenv.Must(c.Do(req))(t)
			if text := body(t, res); res.StatusCode != one.status || text != one.text {
				t.Errorf("the answer is %d %q, want %d %q", res.StatusCode, text, one.status, one.text)
			}
		})
	}
}

// TestChallengesOfAHostEnd: a host whose section has gone has the routes that it had.
func TestChallengesOfAHostEnd(t *testing.T) {
	p, address := ingressProxy(t, false, section(t, table.ChallengesKey("h.example"), table.Challenges{Thumbprint: thumbprint}))
	c := client(t, address, "http1")
	if status, _ := get(t, c, "http://h.example/.well-known/acme-challenge/tok"); status != http.StatusOK {
		t.Errorf("the answer is %d", status)
	}
	if problems := p.Apply([]table.Change{section(t, table.ChallengesKey("h.example"), table.Challenges{Thumbprint: "no thumbprint"})}); len(problems) != 1 {
		t.Errorf("problems of a thumbprint that is none: %v", problems)
	}
	p.Apply([]table.Change{{Key: table.ChallengesKey("h.example")}})
	if status, _ := get(t, c, "http://h.example/.well-known/acme-challenge/tok"); status != http.StatusNotFound {
		t.Errorf("the answer is %d", status)
	}
}

// TestHostWithoutCertificateGetsDefault: hosts without one have the table's, and the proxy's own while that is absent.
func TestHostWithoutCertificateGetsDefault(t *testing.T) {
	standard := pemCertificate(t)
	p, address := ingressProxy(t, true,
		section(t, table.DefaultCertificateKey, standard),
		section(t, table.HostKey(table.SiteIngress, "lost.example"), table.Host{Routes: []table.Route{}}),
	)
	shown := func(name string) string {
		conn := testenv.Must(tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, ServerName: name}))(t)
		defer conn.Close()
		return encoded(conn.ConnectionState().PeerCertificates[0])
	}
	for _, name := range []string{"lost.example", "unknown.example", ""} {
		testenv.True(t, shown(name) == standard.Chain, "the host %q has another certificate", name)
	}
	p.Apply([]table.Change{{Key: table.HostKey(table.SiteIngress, "lost.example")}, {Key: table.DefaultCertificateKey}})
	testenv.True(t, shown("") != standard.Chain, "the table's default certificate is served after it has gone")
	other := pemCertificate(t)
	p.Apply([]table.Change{section(t, table.DefaultCertificateKey, other)})
	testenv.Equal(t, shown(""), other.Chain, "another default certificate is not served:")
	p.Apply([]table.Change{section(t, table.DefaultCertificateKey, table.Certificate{Chain: "none"})})
	testenv.True(t, shown("") != other.Chain, "a default certificate that cannot be used leaves the one before")
}

func encoded(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}
