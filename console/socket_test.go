// SPDX-License-Identifier: Apache-2.0

package console

import (
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// tab opens a WebSocket as a page does.
func tab(t *testing.T, s *httptest.Server, token string, header http.Header) (*websocket.Conn, int) {
	t.Helper()
	d := websocket.Dialer{Subprotocols: []string{protocol, tokenProtocol + base64.RawURLEncoding.EncodeToString([]byte(token))}}
	conn, response, err := d.DialContext(t.Context(), "ws"+strings.TrimPrefix(s.URL, "http")+"/ws", header)
	if response != nil {
		defer response.Body.Close()
	}
	if err != nil {
		testenv.Require(t, response != nil, "%v", err)
		return nil, response.StatusCode
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(2 * time.Minute))
	return conn, response.StatusCode
}

// next reads a tab's next message, which is of the given type.
func next(t *testing.T, conn *websocket.Conn, kind string) map[string]any {
	t.Helper()
	var m map[string]any
	testenv.NoError(t, conn.ReadJSON(&m), "waiting for %s", kind)
	testenv.Require(t, m["type"] == kind, "the message is %v, want one of type %s", m, kind)
	return m
}

func TestCloseEndsTabs(t *testing.T) {
	h := testenv.Must(New(Options{Hosts: loopbackName, User: func(string) (*rest.Config, bool) { return &rest.Config{}, true }}))(t)
	s := httptest.NewServer(h)
	defer s.Close()
	conn, _ := tab(t, s, "good", nil)
	h.Close()
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("the tab ends with %v", err)
	}
}

// An attacker who is a user opens a log without end and does not read it; another tab must not wait for that.
func TestTabThatDoesNotReadCostsItselfAlone(t *testing.T) {
	s := consoleOf(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/log") {
			tableAPI(t)(w, r)
			return
		}
		for r.Context().Err() == nil { // as long as the client reads
			if _, err := io.WriteString(w, strings.Repeat("x", 1000)+"\n"); err != nil {
				return
			}
		}
	})
	slow, _ := tab(t, s, "good", nil)
	testenv.NoError(t, slow.WriteJSON(pageMessage{ID: 1, Op: "log", Path: "/api/v1/namespaces/a/pods/b/log"}))
	next(t, slow, "state")
	next(t, slow, "lines") // it reads these messages, and no other
	other, _ := tab(t, s, "good", nil)
	testenv.NoError(t, other.WriteJSON(pageMessage{ID: 1, Op: "list", Path: "/api/v1/pods"}))
	next(t, other, "columns")
}

// An attacker who is a user opens tabs without end; they must not be more than the bound, and another user's must not
// be refused.
func TestUserHasABoundedNumberOfTabs(t *testing.T) {
	l := newSocketLimit()
	for range userSockets {
		if _, ok := l.acquire("one"); !ok {
			t.Fatal("a tab was refused")
		}
	}
	if _, ok := l.acquire("one"); ok {
		t.Error("one user has more tabs than are allowed")
	}
	release, ok := l.acquire("another")
	testenv.Require(t, ok, "another user was refused")
	if release(); len(l.byUser) != 1 {
		t.Errorf("%d users are kept", len(l.byUser))
	}
}

// TestInputOfATabIsBounded: what the shells of a tab have not read counts together.
func TestInputOfATabIsBounded(t *testing.T) {
	s := &socket{}
	typed := pageMessage{Op: "stdin", Data: strings.Repeat("x", maxInput)}
	taken := 0
	for range 2 * maxPending / maxInput { // each in a shell of its own
		st := &stream{s: s, input: make(chan pageMessage, 1)}
		if st.queue(typed) {
			taken++
		}
	}
	if taken != maxPending/maxInput || s.pending.Load() != maxPending {
		t.Errorf("%d inputs are taken, %d bytes", taken, s.pending.Load())
	}
}
