// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/ingress/compile"
)

func at(location string) map[string]string { return map[string]string{"Location": location} }

// scene is some Ingresses with requests to them.
type scene struct {
	name      string
	ingresses []*networkingv1.Ingress
	requests  []exchanged
	finding   string // a part of what findings must say; empty for none at all
}

func run(t *testing.T, scenes []scene) {
	server := newAuthority(t, "some").issue("h.example")
	secrets := map[string]map[string]string{"a/server": {"tls.crt": server.Chain, "tls.key": server.Key}}
	for _, s := range scenes {
		t.Run(s.name, func(t *testing.T) {
			f, r := cluster{ingresses: s.ingresses, secrets: secrets}.serve(t)
			for _, e := range s.requests {
				e.check(t, f)
			}
			if got := reasons(r); s.finding == "" && got != "" || !strings.Contains(got, s.finding) {
				t.Errorf("findings:\n%s\nwant %q", got, s.finding)
			}
		})
	}
}

func TestRewriteTargetChangesBackendPath(t *testing.T) {
	one := func(class string, a annotations, rules ...string) []*networkingv1.Ingress {
		return []*networkingv1.Ingress{object("a/x", class, a, rules...)}
	}
	run(t, []scene{
		{"groups", one("nginx", annotations{"rewrite-target": "/$2", "use-regex": "true"}, "h~/foo(/|$)(.*)=w"), []exchanged{
			{url: "http://h/foo/bar?a=1;b", body: "w /bar?a=1;b"}, {url: "http://h/FOO", body: "w /"},
			{url: "http://h/foo/a%2Fb%20c%25/x%C3%A4", body: "w /a%2Fb%20c%25/x%C3%A4"}, {url: "http://h/foox", status: 404},
		}, ""},
		{"the query of the target comes first", one("nginx", annotations{"rewrite-target": "/x?p=$1"}, "h~/(.*)=w"), []exchanged{
			{url: "http://h/a&b", body: "w /x?p=a%26b"}, {url: "http://h/a?q=2", body: "w /x?p=a&q=2"}}, ""},
		{"a question mark at its end drops the request's", one("nginx", annotations{"rewrite-target": "/x?"}, "h/=w"), []exchanged{{url: "http://h/a?q=2", body: "w /x"}}, ""},
		{"the whole path is replaced", one("nginx", annotations{"rewrite-target": "/"}, "h/foo=w"), []exchanged{
			{url: "http://h/foo/bar", body: "w /"}, {url: "http://h/FOObar", body: "w /"}}, ""},
		{"dot segments do not come back", one("nginx", annotations{"rewrite-target": "/a/.$1/c"}, "h~/x(.)=w"), []exchanged{{url: "http://h/x.", body: "w /c"}}, ""},
		{"our class compares case", one("coracle", annotations{"rewrite-target": "/$1"}, "h~/foo/(.*)=w"), []exchanged{
			{url: "http://h/foo/bar", body: "w /bar"}, {url: "http://h/FOO/bar", status: 404}}, ""},
		{"our class keeps prefixes", one("coracle", annotations{"rewrite-target": "/"}, "h/foo=w"), []exchanged{
			{url: "http://h/foo/bar", body: "w /"}, {url: "http://h/foobar", status: 404}}, ""},
		{"a longer path of another Ingress is not rewritten", []*networkingv1.Ingress{
			object("a/x", "nginx", nil, "h/.well-known/acme/challenge=w"), object("a/y", "nginx", annotations{"rewrite-target": "/new/backend"}, "h/=w"),
		}, []exchanged{{url: "http://h/.well-known/acme/challenge", body: "w /.well-known/acme/challenge"}, {url: "http://h/x", body: "w /new/backend"}}, ""},
		{"a path beside a longer expression", []*networkingv1.Ingress{
			object("a/x", "nginx", nil, "h/foo=w"), object("a/y", "nginx", annotations{"use-regex": "true", "rewrite-target": "/new/backend"}, "h~/foo.+=w"),
		}, []exchanged{{url: "http://h/foo", body: "w /foo"}, {url: "http://h/foo/bar", body: "w /new/backend"}}, ""},
		{"the expression with the longer text is first", []*networkingv1.Ingress{
			object("a/x", "nginx", nil, "h/foo/bar/bar=w"), object("a/y", "nginx", annotations{"use-regex": "true", "rewrite-target": "/new/backend"}, "h~/foo/bar/[a-z]{3}=w"),
		}, []exchanged{{url: "http://h/foo/bar/bar", body: "w /new/backend"}}, ""},
		{"a variable", one("nginx", annotations{"rewrite-target": "/$host"}, "h/foo=w"), []exchanged{{url: "http://h/foo", status: 503}}, "variable"},
		{"the quirk is the host's", []*networkingv1.Ingress{
			object("a/x", "nginx", annotations{"use-regex": "true"}, "h~/[A-Z]{3}=regex"), object("a/y", "nginx", nil, "h=/headers-long=plain", "g=/headers=plain"),
		}, []exchanged{
			{url: "http://h/HEADers-long/x", body: "plain /HEADers-long/x"}, {url: "http://h/abcd", body: "regex /abcd"}, {url: "http://h/ab", status: 404},
			{url: "http://g/HEADERS", status: 404},
		}, ""},
		{"a lookahead closes what it may have matched", []*networkingv1.Ingress{
			object("a/x", "nginx", annotations{"use-regex": "true"}, "h~/adm(?!in).*=w"), object("a/y", "nginx", nil, "h/=open"),
		}, []exchanged{{url: "http://h/admin", status: 503}, {url: "http://h/ADMx", status: 503}, {url: "http://h/", body: "open /"}}, "lookahead"},
		{"digits", one("nginx", annotations{"use-regex": "true"}, "h/id/[0-9]+=w"), []exchanged{
			{url: "http://h/id/123", body: "w /id/123"}, {url: "http://h/id/123a", body: "w /id/123a"}, {url: "http://h/id/aaa", status: 404}}, ""},
		{"digits to the end", one("nginx", annotations{"use-regex": "true"}, "h/id/[0-9]+$=w"), []exchanged{
			{url: "http://h/id/1", body: "w /id/1"}, {url: "http://h/id/aaa", status: 404}, {url: "http://h/id/123a", status: 404}}, ""},
		{"three digits", one("nginx", annotations{"use-regex": "true"}, "h/id/[0-9]{3}$=w"), []exchanged{
			{url: "http://h/id/99", status: 404}, {url: "http://h/id/123", body: "w /id/123"}, {url: "http://h/id/9999", status: 404}, {url: "http://h/id/123a", status: 404}}, ""},
		{"several segments", one("nginx", annotations{"use-regex": "true"}, "h/id/[0-9]+/post/[a-zA-Z]+$=w"), []exchanged{
			{url: "http://h/id/123/post/abc", body: "w /id/123/post/abc"}, {url: "http://h/id/123/post/abc123", status: 404}, {url: "http://h/id/abc/post/abc", status: 404}}, ""},
		{"an alternation does not leave the beginning", one("nginx", annotations{"use-regex": "true"}, "h~/a|/b=w"), []exchanged{
			{url: "http://h/b", body: "w /b"}, {url: "http://h/x/b", status: 404}}, ""},
	})
}

func TestPathsOfClassNginx(t *testing.T) {
	run(t, []scene{{"text and slashes", []*networkingv1.Ingress{object("a/x", "nginx", nil, "h~/text=t", "h/slash/=s", "h=/exact/=e", "h/=root", "g~/other/=o")}, []exchanged{
		{url: "http://h/textual", body: "t /textual"}, {url: "http://h/slash/a", body: "s /slash/a"}, {url: "http://h/exact/", body: "e /exact/"},
		{url: "http://h/slash?x=1", status: 301, answer: at("http://h/slash/?x=1")}, {url: "http://h/exact", status: 301, answer: at("http://h/exact/")},
		{url: "http://g/other", status: 301, answer: at("http://g/other/")}, {url: "http://h//a/../text", body: "t /text"},
	}, ""}, {"prefixes end at a slash", []*networkingv1.Ingress{object("a/x", "nginx", nil, "h/aaa=w")}, []exchanged{
		{url: "http://h/aaa", body: "w /aaa"}, {url: "http://h/aaacccc", status: 404}, {url: "http://h/aaa/cccc", body: "w /aaa/cccc"}, {url: "http://h/aaa/", body: "w /aaa/"},
	}, ""}, {"exact paths and prefixes", []*networkingv1.Ingress{
		object("a/x", "nginx", nil, "h=/=exactroot", "h=/foo=exact"), object("a/y", "nginx", nil, "h/=root", "h/foo=prefix"), object("a/z", "nginx", nil, "h/foo=later"),
	}, []exchanged{
		{url: "http://h/", body: "exactroot /"}, {url: "http://h/bar", body: "root /bar"}, {url: "http://h/foo", body: "exact /foo"},
		{url: "http://h/foo/bar", body: "prefix /foo/bar"}, {url: "http://h/foobar", body: "root /foobar"},
	}, "the older Ingress keeps it"}, {"a path that would be a configuration", []*networkingv1.Ingress{
		object("a/x", "nginx", nil, "h/bla{alias /var/run/secrets/;}location ~* ^/abcd=bad"), object("a/y", "nginx", nil, "h/xpto=w"),
	}, []exchanged{
		{url: "http://h/xpto", body: "w /xpto"}, {url: "http://h/bla", status: 404}, {url: "http://h/abcd/", status: 404},
	}, ""}, {"our class has none of it", []*networkingv1.Ingress{object("a/x", "coracle", nil, "h~/text=t", "h/slash/=s")}, []exchanged{
		{url: "http://h/textual", status: 404}, {url: "http://h/slash", body: "s /slash"},
	}, ""}})
}

func TestRedirectAnnotationsRedirectClients(t *testing.T) {
	one := func(a annotations) []*networkingv1.Ingress {
		return []*networkingv1.Ingress{object("a/x", "nginx", a, "h.example/=w")}
	}
	secure := func(all []*networkingv1.Ingress) []*networkingv1.Ingress {
		all[0].Spec.TLS = []networkingv1.IngressTLS{{SecretName: "server"}}
		return all
	}
	run(t, []scene{
		{"permanent", one(annotations{"permanent-redirect": "https://to.example/x"}), []exchanged{{url: "http://h.example/a", status: 301, answer: at("https://to.example/x")}}, ""},
		{"with a code", one(annotations{"permanent-redirect": "https://to.example$request_uri", "permanent-redirect-code": "308"}),
			[]exchanged{{url: "http://h.example/a?b", status: 308, answer: at("https://to.example/a?b")}}, ""},
		{"with the code of another kind", one(annotations{"permanent-redirect": "https://to.example", "permanent-redirect-code": "302"}),
			[]exchanged{{url: "http://h.example/a", status: 302, answer: at("https://to.example")}}, ""},
		{"a path is one of the host's", one(annotations{"permanent-redirect": "/new", "relative-redirects": "false"}),
			[]exchanged{{url: "http://h.example/a", status: 301, answer: at("http://h.example/new")}, {url: "https://h.example/a", status: 301, answer: at("https://h.example/new")}}, ""},
		{"relative", one(annotations{"temporal-redirect": "/new", "relative-redirects": "true"}), []exchanged{{url: "http://h.example/a", status: 302, answer: at("/new")}}, ""},
		{"ssl-redirect keeps a slash", secure(one(annotations{"ssl-redirect": "true", "preserve-trailing-slash": "true"})), []exchanged{
			{url: "http://h.example/", status: 308, answer: at("https://h.example/")}, {url: "http://h.example/a/", status: 308, answer: at("https://h.example/a/")},
			{url: "https://h.example/a", body: "w /a"}}, ""},
		{"temporal before permanent", one(annotations{"temporal-redirect": "https://t.example", "permanent-redirect": "https://p.example"}),
			[]exchanged{{url: "http://h.example/a", status: 302, answer: at("https://t.example")}}, ""},
		{"a bad code", one(annotations{"permanent-redirect": "https://to.example", "permanent-redirect-code": "200"}),
			[]exchanged{{url: "http://h.example/", status: 503}}, "permanent-redirect-code"},
		{"app-root", one(annotations{"app-root": "/app"}), []exchanged{
			{url: "http://h.example/", status: 302, answer: at("http://h.example/app")}, {url: "https://h.example/", status: 302, answer: at("https://h.example/app")},
			{url: "http://h.example/app", body: "w /app"}}, ""},
		{"www", one(annotations{"from-to-www-redirect": "true"}), []exchanged{
			{url: "http://www.h.example/a?b", status: 308, answer: at("http://h.example/a?b")}, {url: "https://www.h.example/", status: 308, answer: at("https://h.example/")},
			{url: "http://h.example/a", body: "w /a"}}, ""},
		{"force-ssl-redirect", one(annotations{"force-ssl-redirect": "true"}), []exchanged{
			{url: "http://h.example/a/", status: 308, answer: at("https://h.example/a/")}, {url: "https://h.example/a", body: "w /a"}}, ""},
		{"challenges are not redirected", []*networkingv1.Ingress{object("a/x", "nginx", annotations{"force-ssl-redirect": "true"},
			"h.example/=w", "h.example=/.well-known/acme-challenge/t=acme")}, []exchanged{
			{url: "http://h.example/.well-known/acme-challenge/t", body: "acme /.well-known/acme-challenge/t"}, {url: "http://h.example/", status: 308}}, ""},
		{"no boolean", one(annotations{"force-ssl-redirect": "yes"}), []exchanged{{url: "http://h.example/", status: 503}}, "neither true nor false"},
	})
}

func TestHostsAndHeadersOfAnnotations(t *testing.T) {
	show := func(names string) map[string]string { return map[string]string{"X-Show": names} }
	run(t, []scene{
		{"aliases", []*networkingv1.Ingress{object("a/x", "nginx", annotations{"server-alias": "b.example, *.c.example"}, "h/=w")}, []exchanged{
			{url: "http://b.example/", body: "w /"}, {url: "http://x.c.example/", body: "w /"}, {url: "http://d.example/", status: 404}}, ""},
		{"an alias that is a host", []*networkingv1.Ingress{object("a/x", "nginx", annotations{"server-alias": "g"}, "h/=w"), object("b/y", "nginx", nil, "g/=g")},
			[]exchanged{{url: "http://g/", body: "g /"}}, "a host already"},
		{"an alias that is an expression", []*networkingv1.Ingress{object("a/x", "nginx", annotations{"server-alias": "~^x"}, "h/=w")},
			[]exchanged{{url: "http://h/", body: "w /"}}, "no DNS name"},
		{"an alias has all paths of its host", []*networkingv1.Ingress{object("a/x", "nginx", nil, "h/app-a=w"), object("a/y", "nginx", annotations{"server-alias": "bar"}, "h/app-b=w")},
			[]exchanged{{url: "http://h/app-a", body: "w /app-a"}, {url: "http://bar/app-a", body: "w /app-a"}, {url: "http://bar/app-b", body: "w /app-b"}}, ""},
		{"upstream-vhost", []*networkingv1.Ingress{object("a/x", "nginx", annotations{"upstream-vhost": "v.example"}, "h/=w")},
			[]exchanged{{url: "http://h/", headers: show("Host,X-Forwarded-Host"), body: "w / Host=v.example X-Forwarded-Host=h"}}, ""},
		{"x-forwarded-prefix", []*networkingv1.Ingress{object("a/x", "nginx", annotations{"x-forwarded-prefix": "/p"}, "h/=w")},
			[]exchanged{{url: "http://h/", headers: show("X-Forwarded-Prefix"), body: "w / X-Forwarded-Prefix=/p"}}, ""},
		{"x-forwarded-prefix beside a rewrite", []*networkingv1.Ingress{object("a/x", "nginx", annotations{"x-forwarded-prefix": "/p", "rewrite-target": "/foo"}, "h/=w"),
			object("a/y", "nginx", annotations{"x-forwarded-prefix": "", "rewrite-target": "/foo"}, "g/=w")}, []exchanged{
			{url: "http://h/", headers: show("X-Forwarded-Prefix"), body: "w /foo X-Forwarded-Prefix=/p"}, {url: "http://g/", headers: show("X-Forwarded-Prefix"), body: "w /foo"}}, ""},
	})
}

func TestRefusedAnnotationsCloseTheRoute(t *testing.T) {
	one := func(name, value string) []*networkingv1.Ingress {
		return []*networkingv1.Ingress{object("a/x", "coracle", annotations{name: value}, "h/=w")}
	}
	closed, open := []exchanged{{url: "http://h/", status: 503}}, []exchanged{{url: "http://h/", body: "w /"}}
	run(t, []scene{
		{"a snippet", one("configuration-snippet", "more_set_headers x;"), closed, "custom-headers"},
		{"an unknown name", one("no-such-thing", "x"), closed, "not one of ingress-nginx's"},
		{"modsecurity", one("enable-modsecurity", "true"), closed, "ModSecurity"},
		{"modsecurity that is off", one("enable-modsecurity", "false"), open, ""},
		{"what only tunes", one("proxy-buffering", "on"), open, "Ignored: "},
		{"a closed Ingress closes no other", append(one("auth-type", "unknown"), object("a/y", "coracle", nil, "g/=w")),
			[]exchanged{{url: "http://h/", status: 503}, {url: "http://g/", body: "w /"}}, "basic alone"},
	})
}

// TestEveryUnservedAnnotation asks for one annotation that is not served at each path.
func TestEveryUnservedAnnotation(t *testing.T) {
	var c cluster
	for _, a := range compile.Annotations {
		if a.Support != compile.Done {
			c.ingresses = append(c.ingresses, object("a/"+a.Name, "nginx", annotations{a.Name: "x"}, "h/"+a.Name+"=w"))
		}
	}
	f, r := c.serve(t)
	for _, a := range compile.Annotations {
		want := exchanged{url: "http://h/" + a.Name, body: "w /" + a.Name}
		switch a.Support {
		case compile.Done:
			continue
		case compile.Refused:
			want.status, want.body = http.StatusServiceUnavailable, ""
		}
		want.check(t, f)
		if found := fmt.Sprint(r.Findings[types.NamespacedName{Namespace: "a", Name: a.Name}]); !strings.Contains(found, a.Name) {
			t.Errorf("no event says that %s is %s: %s", a.Name, a.Support, found)
		}
	}
}

func TestAliasesHaveRoutesOfTheirNamespace(t *testing.T) {
	f, _ := cluster{ingresses: []*networkingv1.Ingress{
		object("a/own", "nginx", nil, "a.example/=own"),
		object("b/other", "nginx", annotations{"server-alias": "alias.example"}, "a.example/x=other"),
	}}.serve(t)
	exchanged{url: "http://a.example/y", body: "own /y"}.check(t, f)
	exchanged{url: "http://a.example/x", body: "other /x"}.check(t, f)
	exchanged{url: "http://alias.example/x", body: "other /x"}.check(t, f)
	exchanged{url: "http://alias.example/y", status: 404}.check(t, f)
}
