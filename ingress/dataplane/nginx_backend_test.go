// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// tlsBackend runs a handler over TLS with a certificate that no authority signed.
func tlsBackend(t *testing.T, h http.HandlerFunc) string {
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func TestBackendProtocolAnnotationSelectsTLS(t *testing.T) {
	handler := func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %t %s %s", r.Proto, r.TLS != nil, r.RequestURI, text)
	}
	plain, secure := backendServer(t, handler), tlsBackend(t, handler)
	for _, c := range []struct{ protocol, address, want string }{
		{"HTTP", plain, "HTTP/1.1 false /a//%2F?q x"}, {"http", plain, "HTTP/1.1 false /a//%2F?q x"}, {"GRPC", plain, "HTTP/2.0 false /a//%2F?q x"},
		{"HTTPS", secure, "HTTP/1.1 true /a//%2F?q x"}, {"GRPCS", secure, "HTTP/2.0 true /a//%2F?q x"}, {"https", secure, "HTTP/1.1 true /a//%2F?q x"}, {"AJP", plain, "closed"}, {"AUTO_HTTP", plain, "closed"}, {"FCGI", plain, "closed"},
	} {
		t.Run(c.protocol, func(t *testing.T) {
			f, r := cluster{ingresses: []*networkingv1.Ingress{object("a/x", "nginx", annotations{"backend-protocol": c.protocol, "proxy-ssl-verify": "off"}, "h/=w")},
				endpoints: map[string]string{"a/w": c.address}}.serve(t)
			res := testenv.Must(client(t, f.http, "http1").Post("http://h/a/%2F?q", "text/plain", strings.NewReader("x")))(t)
			want := strings.Replace(c.want, "//", "/", 1)
			if got := body(t, res); got != want && (c.want != "closed" || res.StatusCode != http.StatusServiceUnavailable || reasons(r) == "") {
				t.Errorf("%d %q, want %q", res.StatusCode, got, want)
			}
		})
	}
}

// TestWebsocketToTLS sends a handshake, and then bytes both ways, to a backend with TLS.
func TestWebsocketToTLS(t *testing.T) {
	backend := tlsBackend(t, func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		line, _ := rw.ReadString('\n')
		_, _ = io.WriteString(conn, "got "+line)
	})
	f, _ := cluster{ingresses: []*networkingv1.Ingress{object("a/x", "nginx", annotations{"backend-protocol": "HTTPS"}, "h/=w")},
		endpoints: map[string]string{"a/w": backend}}.serve(t)
	got := exchangeRaw(t, f.http, "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello\n")
	testenv.False(t, !strings.HasPrefix(got, "HTTP/1.1 101") || !strings.HasSuffix(got, "got hello\n"), "the tunnel gave %q", got)
}
