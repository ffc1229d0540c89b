// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/tls"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestAnnotationSSLPassthrough(t *testing.T) {
	f, r := cluster{
		ingresses: []*networkingv1.Ingress{
			object("a/pass", "nginx", annotations{"ssl-passthrough": "true", "backend-protocol": "HTTPS"}, "pass.example/=secure"),
			object("a/web", "nginx", nil, "web.example/=web"),
			object("a/guarded", "nginx", annotations{"ssl-passthrough": "true", "whitelist-source-range": "10.0.0.0/8"}, "guarded.example/=secure"),
			object("a/part", "nginx", annotations{"ssl-passthrough": "true"}, "part.example/x=secure"),
			object("a/first", "coracle", nil, "both.example/x=web"),
			object("a/second", "coracle", annotations{"ssl-passthrough": "true"}, "both.example/=secure"),
		},
		endpoints: map[string]string{"a/secure": tlsEcho(t, nil)},
	}.serve(t)
	conn := testenv.Must(tls.Dial("tcp", f.https, &tls.Config{ServerName: "pass.example", InsecureSkipVerify: true}))(t)
	defer conn.Close()
	testenv.Equal(t, conn.ConnectionState().PeerCertificates[0].Subject.CommonName, "backend", "the certificate is that of")
	testenv.Equal(t, testenv.Must(converse(t, conn, "hello"))(t), "helloend", "the backend answers")
	exchanged{url: "http://pass.example/x", status: 308, answer: map[string]string{"Location": "https://pass.example/x"}}.check(t, f)
	req := httptest.NewRequest(http.MethodGet, "https://pass.example/", nil)
	req.RequestURI = ""
	res := testenv.Must(f.asks(t, "h2", "web.example", nil).Do(req))(t)
	if body(t, res); res.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("a request by another host's connection is answered with %d", res.StatusCode)
	}
	exchanged{url: "http://guarded.example/", status: 503}.check(t, f)
	exchanged{url: "http://part.example/x", status: 503}.check(t, f)
	testenv.Fails(t, testenv.Err(tls.Dial("tcp", f.https, &tls.Config{ServerName: "guarded.example", InsecureSkipVerify: true})), "connections to a host with a restriction are passed on")
	exchanged{url: "http://both.example/x", body: "web /x"}.check(t, f)
	exchanged{url: "https://both.example/x", body: "web /x"}.check(t, f)
	exchanged{url: "http://both.example/", status: 503}.check(t, f)
	for _, want := range []string{"whitelist-source-range cannot hold", "needs a host and the path /", "Ingress/a/first has paths at the host \"both.example\""} {
		testenv.Contains(t, reasons(r), want, "no event says %q:", want)
	}
}

func TestAnnotationsProxySSL(t *testing.T) {
	good, own := newAuthority(t, "good"), newAuthority(t, "own")
	clients := own.pool()
	address := secureBackend(t, &tls.Config{
		Certificates: []tls.Certificate{pair(t, good.issue("abc.example.com"))}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: clients,
	})
	mine := own.issue("proxy")
	verified := annotations{"backend-protocol": "HTTPS", "proxy-ssl-secret": "a/ca", "proxy-ssl-verify": "on", "proxy-ssl-name": "abc.example.com"}
	with := func(more annotations) annotations {
		out := annotations{}
		for _, from := range []annotations{verified, more} {
			maps.Copy(out, from)
		}
		return out
	}
	f, r := cluster{
		ingresses: []*networkingv1.Ingress{
			object("a/verified", "nginx", verified, "a.example/verified=b"),
			object("a/sni", "nginx", with(annotations{"proxy-ssl-server-name": "on", "proxy-ssl-protocols": "TLSv1.2 TLSv1.3"}), "a.example/sni=b"),
			object("a/shown", "nginx", annotations{"backend-protocol": "GRPCS", "proxy-ssl-secret": "a/own"}, "a.example/shown=b"),
			object("a/plain", "nginx", annotations{"proxy-ssl-secret": "a/ca"}, "a.example/plain=w"),
			object("a/other", "nginx", with(annotations{"proxy-ssl-name": "xyz.example.com"}), "a.example/other=b"),
			object("a/absent", "nginx", with(annotations{"proxy-ssl-secret": "absent"}), "a.example/absent=b"),
			object("a/foreign", "nginx", with(annotations{"proxy-ssl-secret": "b/ca"}), "a.example/foreign=b"),
			object("a/noname", "nginx", annotations{"backend-protocol": "HTTPS", "proxy-ssl-secret": "ca", "proxy-ssl-verify": "on"}, "a.example/noname=b"),
			object("a/nosecret", "nginx", annotations{"backend-protocol": "HTTPS", "proxy-ssl-verify": "on", "proxy-ssl-name": "x"}, "a.example/nosecret=b"),
			object("a/old", "nginx", with(annotations{"proxy-ssl-protocols": "TLSv1"}), "a.example/old=b"),
		},
		secrets: map[string]map[string]string{
			"a/ca": {"ca.crt": good.section().Certificates}, "b/ca": {"ca.crt": good.section().Certificates},
			"a/own": {"tls.crt": mine.Chain, "tls.key": mine.Key},
		},
		endpoints: map[string]string{"a/b": address},
	}.serve(t)
	for path, want := range map[string]string{
		"verified": "nobody to  by HTTP/1", "sni": "nobody to abc.example.com by HTTP/1", "shown": "proxy to  by HTTP/2", "plain": "w /plain",
		"other": "502", "absent": "502", "foreign": "503", "noname": "503", "nosecret": "503", "old": "503",
	} {
		e := exchanged{url: "http://a.example/" + path, body: want}
		if len(want) == 3 {
			_, _ = fmt.Sscan(want, &e.status)
			e.body = ""
		}
		e.check(t, f)
	}
	testenv.Contains(t, reasons(r), "the Secret absent does not exist", "no event says that a Secret is missing:")
}

func TestAnnotationsAuthTLS(t *testing.T) {
	good, bad := newAuthority(t, "good"), newAuthority(t, "bad")
	server := good.issue("tls.example", "web.example")
	ask := annotations{"auth-tls-secret": "a/ca"}
	with := func(more ...string) annotations {
		out := annotations{"auth-tls-secret": "a/ca"}
		for i := 0; i < len(more); i += 2 {
			out["auth-tls-"+more[i]] = more[i+1]
		}
		return out
	}
	secure := func(ing *networkingv1.Ingress) *networkingv1.Ingress {
		ing.Spec.TLS = []networkingv1.IngressTLS{{SecretName: "server"}}
		return ing
	}
	f, r := cluster{
		ingresses: []*networkingv1.Ingress{
			secure(object("a/on", "nginx", with("pass-certificate-to-upstream", "true"), "tls.example/on=b")),
			object("a/plain", "nginx", nil, "tls.example/plain=b"),
			object("b/other", "nginx", nil, "tls.example/other=b"),
			object("a/optional", "nginx", with("verify-client", "optional"), "tls.example/optional=b"),
			object("a/noca", "nginx", with("verify-client", "optional_no_ca"), "tls.example/noca=b"),
			object("a/cn", "nginx", with("match-cn", "CN=(friend|x)$"), "tls.example/cn=b"),
			object("a/page", "nginx", with("error-page", "https://help.example/"), "tls.example/page=b"),
			object("a/zabsent", "nginx", annotations{"auth-tls-secret": "a/none"}, "tls.example/absent=b"),
			object("a/off", "nginx", with("verify-client", "off"), "off.example/=b"),
			object("a/own", "coracle", ask, "own.example/on=b"),
			object("a/own2", "coracle", nil, "own.example/plain=b"),
			object("a/wrong", "nginx", with("match-cn", "O=x"), "wrong.example/=b"),
			object("a/alone", "nginx", annotations{"auth-tls-verify-client": "on"}, "alone.example/=b"),
			object("a/web", "nginx", nil, "web.example/=b"),
		},
		secrets: map[string]map[string]string{
			"a/ca": {"ca.crt": good.section().Certificates}, "a/server": {"tls.crt": server.Chain, "tls.key": server.Key},
		},
	}.serve(t)
	friend, untrusted := pair(t, good.issue("friend")), pair(t, bad.issue("friend"))
	foe := pair(t, good.issue("foe"))
	const show = "Ssl-Client-Verify,Ssl-Client-Subject-Dn,Ssl-Client-Issuer-Dn"
	const known = " Ssl-Client-Verify=SUCCESS Ssl-Client-Subject-Dn=CN=friend Ssl-Client-Issuer-Dn=CN=good"
	for _, c := range []struct {
		path        string
		certificate *tls.Certificate
		status      int
		body        string
	}{
		{"on", &friend, 200, "b /on" + known},
		{"on", nil, 400, ""},
		{"on", &untrusted, 400, ""},
		{"plain", nil, 400, ""}, // as ingress-nginx, which asks at the whole server
		{"plain", &friend, 200, "b /plain" + known},
		{"other", nil, 200, "b /other Ssl-Client-Verify=forged"}, // of another namespace, which has no say and gets nothing
		{"optional", nil, 200, "b /optional Ssl-Client-Verify=NONE"},
		{"optional", &friend, 200, "b /optional" + known},
		{"optional", &untrusted, 400, ""},
		{"noca", &untrusted, 200, "b /noca Ssl-Client-Verify=FAILED:unable to verify the first certificate Ssl-Client-Subject-Dn=CN=friend Ssl-Client-Issuer-Dn=CN=bad"},
		{"cn", &friend, 200, "b /cn" + known},
		{"cn", &foe, 403, ""},
		{"page", nil, 302, ""},
		{"absent", &friend, 503, ""},
	} {
		for _, protocol := range []string{"http1", "h2"} {
			req := httptest.NewRequest(http.MethodGet, "https://tls.example/"+c.path, nil)
			req.RequestURI = ""
			req.Header.Set("X-Show", show)
			req.Header.Set("Ssl-Client-Verify", "forged")
			client := f.asks(t, protocol, "tls.example", c.certificate)
			for range 2 {
				res := testenv.Must(client.Do(req))(t)
				if got := body(t, res); res.StatusCode != c.status || c.body != "" && got != c.body {
					t.Errorf("%s by %s: %d %q, want %d %q", c.path, protocol, res.StatusCode, got, c.status, c.body)
				}
			}
		}
	}
	for path, want := range map[string]string{"page": "https://help.example/", "on": "b /on Ssl-Client-Cert=-----BEGIN%20CERTIFICATE-----%0A"} {
		req := httptest.NewRequest(http.MethodGet, "https://tls.example/"+path, nil)
		req.RequestURI = ""
		req.Header.Set("X-Show", "Ssl-Client-Cert")
		certificate := &friend
		if path == "page" {
			certificate = nil
		}
		res := testenv.Must(f.asks(t, "h2", "tls.example", certificate).Do(req))(t)
		if got := res.Header.Get("Location") + body(t, res); !strings.HasPrefix(got, want) {
			t.Errorf("%s: the answer is %q", path, got)
		}
	}
	exchanged{url: "http://own.example/on", status: 400}.check(t, f)
	exchanged{url: "http://own.example/plain", body: "b /plain"}.check(t, f)
	exchanged{url: "http://off.example/", body: "b /"}.check(t, f)
	exchanged{url: "https://off.example/", body: "b /"}.check(t, f)
	exchanged{url: "http://wrong.example/", status: 503}.check(t, f)
	exchanged{url: "http://alone.example/", status: 503}.check(t, f)
	req := httptest.NewRequest(http.MethodGet, "https://tls.example/on", nil)
	req.RequestURI = ""
	res := testenv.Must(f.asks(t, "h2", "web.example", &friend).Do(req))(t)
	if body(t, res); res.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("a request by a connection that was not asked for a certificate is answered with %d", res.StatusCode)
	}
	testenv.Contains(t, reasons(r), "the Secret none does not exist", "no event says that a Secret is missing:")
	f.Apply([]table.Change{section(t, table.AuthoritiesKey("secret", "a", "ca"), bad.section())})
	testenv.Equal(t, testenv.Must(f.asks(t, "http1", "tls.example", &friend).Get("https://tls.example/on"))(t).StatusCode, http.StatusBadRequest, "a certificate of authorities that were replaced:")
}
