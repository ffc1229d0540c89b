// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestUnauthenticatedConnectionsAreBounded: connections over which no client authenticates make room for one another; a
// client that has authenticated keeps its connection, and a load balancer has its answer.
func TestUnauthenticatedConnectionsAreBounded(t *testing.T) {
	f := newFixture(t)
	o := f.options(t)
	o.unauthenticated = 4
	r := f.start(t, o)
	admin := testenv.Must(rest.HTTPClientFor(r.admin()))(t)
	get := func(c *http.Client, path string) (reused bool) {
		t.Helper()
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }})
		request := testenv.Must(http.NewRequestWithContext(ctx, http.MethodGet, r.url+path, nil))(t)
		answer := testenv.Must(c.Do(request))(t)
		defer answer.Body.Close()
		if _, err := io.Copy(io.Discard, answer.Body); err != nil || answer.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v", path, answer.Status, err)
		}
		return reused
	}
	get(admin, "/version")
	var unauthenticated []net.Conn
	for range 3 * o.unauthenticated {
		c := testenv.Must(net.Dial("tcp", o.Listener.Addr().String()))(t)
		defer c.Close()
		unauthenticated = append(unauthenticated, c)
	}
	for _, c := range unauthenticated[:2*o.unauthenticated] {
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("the oldest unauthenticated connections are not closed: %d bytes", n)
		}
	}
	get(r.anonymous(t, nil), "/readyz")
	testenv.True(t, get(admin, "/version"), "the administrator's connection was closed")
}
