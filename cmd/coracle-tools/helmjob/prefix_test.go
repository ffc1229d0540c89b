// SPDX-License-Identifier: Apache-2.0

package helmjob

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/internal/helmjob"
)

// TestThroughPrefix reaches the API server as the controller's children do: without TLS, below a path.
func TestThroughPrefix(t *testing.T) {
	transport, err := rest.TransportFor(shared.config)
	if err != nil {
		t.Fatal(err)
	}
	to, _, err := rest.DefaultServerUrlFor(shared.config)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Transport: transport, FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }}
	s := httptest.NewServer(http.StripPrefix("/below", proxy))
	defer s.Close()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := `{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":[{"name":"c","cluster":{"server":"` + s.URL +
		`/below"}}],"contexts":[{"name":"c","context":{"cluster":"c","user":"c"}}],"users":[{"name":"c","user":{}}]}`
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	tt := newTester(t)
	req := tt.request(web("1.0.0").With("templates/hook.yaml", fmt.Sprintf(hook, "post-install")))
	req.Kubeconfig, req.Timeout, req.FailurePolicy = kubeconfig, time.Second, helmjob.Retry
	tt.says(tt.do(req, "", helmjob.TimedOut), "web-hook")
	tt.wantGreeting("web", "hello")
	req = tt.request(web("1.1.0"))
	req.Kubeconfig = kubeconfig
	tt.do(req, helmjob.Recovered, "")
	gone := tt.removal()
	gone.Kubeconfig = kubeconfig
	tt.do(gone, helmjob.Uninstalled, "")
	tt.wantGreeting("web", "")
}
