// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/ingress/variable"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// allocated is the memory that was allocated so far.
func allocated() int {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.TotalAlloc) //nolint:gosec // G115: a test's memory
}

// TestTextsOfRoutesDoNotMultiplyRequests: a tenant's text with thousands of variables, or of groups of an expression,
// does not make megabytes of a request's kilobytes.
func TestTextsOfRoutesDoNotMultiplyRequests(t *testing.T) {
	const most = 2 << 20
	many := func(text string) string { return strings.Repeat(text, variable.MaxVariables-4) } // some get more
	for name, c := range map[string]struct {
		annotations annotations
		path        string
	}{
		"rewrite-target":          {annotations{"rewrite-target": "/" + many("$1"), "use-regex": "true"}, "a~/(.*)=w"},
		"query of rewrite-target": {annotations{"rewrite-target": "/x?" + many("$1"), "use-regex": "true"}, "a~/(.*)=w"},
		"temporal-redirect":       {annotations{"temporal-redirect": "https://x.example/" + many("$escaped_request_uri")}, "a/=w"},
		"auth-url":                {annotations{"auth-url": "http://w.n.svc.cluster.local/" + many("$request_uri")}, "a/=w"},
		"auth-signin":             {annotations{"auth-url": "http://no.n.svc.cluster.local/", "auth-signin": "http://x.example/" + many("$request_uri")}, "a/=w"},
		"auth-request-redirect":   {annotations{"auth-url": "http://w.n.svc.cluster.local/", "auth-request-redirect": many("$request_uri")}, "a/=w"},
		"upstream-hash-by":        {annotations{"upstream-hash-by": many("$request_uri")}, "a/=w"},
		"mirror-target":           {annotations{"mirror-target": "http://w.n.svc.cluster.local/" + many("$request_uri")}, "a/=w"},
		"proxy-redirect":          {annotations{"proxy-redirect-from": "/", "proxy-redirect-to": many("$request_uri")}, "a/=moves"},
		"proxy-cookie-path":       {annotations{"proxy-cookie-path": "/ $request_uri"}, "a/=moves"},
	} {
		t.Run(name, func(t *testing.T) {
			f, r := cluster{
				ingresses: []*networkingv1.Ingress{object("n/x", "nginx", c.annotations, c.path)},
				endpoints: map[string]string{
					"n/moves": backendServer(t, func(w http.ResponseWriter, _ *http.Request) {
						w.Header().Set("Location", "/")
						for i := range 1000 {
							w.Header().Add("Set-Cookie", fmt.Sprintf("a%d=b; Path=/", i))
						}
					}),
					"n/no": backendServer(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }),
				},
			}.serve(t)
			testenv.Equal(t, len(r.Findings), 0, "the findings %v are", r.Findings)
			long := strings.Repeat("a", 8<<10)
			before := allocated()
			res := testenv.Must(client(t, f.http, "http1").Get(fmt.Sprintf("http://a/%s?%s", long, long)))(t)
			n, _ := io.Copy(io.Discard, res.Body)
			if took := allocated() - before; took > most {
				t.Errorf("a request of 16 KB took %d KB, and was answered with %d and %d bytes", took>>10, res.StatusCode, n)
			}
		})
	}
}

// TestTextsWithManyVariablesAreRefused: each variable is looked up in the whole request.
func TestTextsWithManyVariablesAreRefused(t *testing.T) {
	many := func(text string) string { return strings.Repeat(text, variable.MaxVariables+1) }
	for name, value := range map[string]string{
		"rewrite-target": "/" + many("$1"), "temporal-redirect": "https://x.example/" + many("$arg_x"), "auth-url": "http://w.n.svc.cluster.local/" + many("$arg_x"),
		"upstream-hash-by": many("$arg_x"), "mirror-target": "http://w.n.svc.cluster.local/" + many("$arg_x"), "proxy-cookie-path": "/ " + many("$arg_x"),
	} {
		f, r := cluster{ingresses: []*networkingv1.Ingress{object("n/x", "nginx", annotations{name: value}, "a/=w")}}.serve(t)
		testenv.Contains(t, reasons(r), fmt.Sprintf("more than %d", variable.MaxVariables), "%s: the findings are", name)
		exchanged{url: "http://a/", status: 503}.check(t, f)
	}
}
