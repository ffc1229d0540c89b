// SPDX-License-Identifier: Apache-2.0

package console

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// asServer makes a console that of a server: tokens are the API's.
func asServer(o *Options) {
	config, _ := o.User("good")
	o.Mode, o.Login = ModeServer, nil
	o.User = func(token string) (*rest.Config, bool) {
		return &rest.Config{Host: config.Host, BearerToken: token}, true
	}
}

// usersAPI knows tokens by the name of their user, and tells of each other request's token.
func usersAPI(users map[string]string, got chan<- string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		name := users[token]
		if name == "" {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"kind":"Status","code":401}`)
			return
		}
		if strings.HasSuffix(r.URL.Path, "selfsubjectreviews") {
			_ = json.NewEncoder(w).Encode(map[string]any{"status": map[string]any{"userInfo": map[string]any{"username": name}}})
			return
		}
		if r.URL.Path == "/version" {
			_, _ = io.WriteString(w, `{"gitVersion":"v1"}`)
			return
		}
		got <- token
		_, _ = io.WriteString(w, "line\n")
	}
}

func TestStreamsGoOnWithARenewedToken(t *testing.T) {
	got := make(chan string, 10)
	s := consoleOf(t, usersAPI(map[string]string{"one": "ada", "two": "ada"}, got), asServer)
	conn, _ := tab(t, s, "one", nil)
	log := func(id int64) string {
		testenv.NoError(t, conn.WriteJSON(pageMessage{ID: id, Op: "log", Path: "/api/v1/namespaces/a/pods/b/log"}))
		next(t, conn, "state")
		next(t, conn, "lines")
		next(t, conn, "end")
		return <-got
	}
	testenv.Equal(t, log(1), "one", "the first stream used")
	testenv.NoError(t, conn.WriteJSON(pageMessage{Op: "token", Data: "two"}))
	id := int64(1)
	testenv.Until(t, 2*time.Minute, "new streams use the later token", func() bool { id++; return log(id) == "two" })
}

// An attacker who has a tab goes on in it after its token has ended; the tab must not stay open.
func TestTokenThatEndsEndsTheTab(t *testing.T) {
	ended, good := jwt(`{"exp":1000}`), jwt(`{"exp":3000}`)
	l := newSocketLogin(&Handler{o: Options{Mode: ModeServer}}, &user{config: &rest.Config{BearerToken: ended}}, "ada")
	for at, want := range map[int64]bool{999: false, 1001: true} {
		testenv.True(t, l.hasExpired(time.Unix(at, 0)) == want, "at %d it has ended: %v", at, !want)
	}
	for _, token := range []string{good, "opaque"} {
		l := newSocketLogin(&Handler{o: Options{Mode: ModeServer}}, &user{config: &rest.Config{BearerToken: token}}, "ada")
		testenv.False(t, l.hasExpired(time.Unix(2000, 0)), "%s has ended", token)
	}
	l = newSocketLogin(&Handler{o: Options{Mode: ModeLoopback}}, &user{config: &rest.Config{BearerToken: ended}}, "")
	testenv.False(t, l.hasExpired(time.Unix(2000, 0)), "on 127.0.0.1 it is the kubeconfig's")

	// A tab whose token ends gets the reason, although the API takes the token for some time more.
	soon := jwt(fmt.Sprintf(`{"exp":%d}`, time.Now().Unix()+2))
	s := consoleOf(t, usersAPI(map[string]string{soon: "ada", ended: "ada"}, nil), asServer, func(o *Options) { o.pingEvery = time.Millisecond })
	conn, _ := tab(t, s, soon, nil)
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.ClosePolicyViolation) {
		t.Errorf("it ends with %v", err)
	}
	// It opens no other tab, nor a session: the page then shows the login.
	for _, path := range []string{"/session", "/ws"} {
		code, text, _ := roundTrip(t, s, "GET", path, "", "Authorization", "Bearer "+ended, "Sec-WebSocket-Protocol",
			protocol+", "+tokenProtocol+base64.RawURLEncoding.EncodeToString([]byte(ended)))
		testenv.True(t, code == http.StatusUnauthorized && strings.Contains(text, "This token ended at 1970-01-01"), "%s: %d %s", path, code, text)
	}
}

// TestRevokedTokenEndsTheTab: the API would go on with a watch whose token was revoked.
func TestRevokedTokenEndsTheTab(t *testing.T) {
	var revoked atomic.Bool
	knows := usersAPI(map[string]string{"one": "ada"}, nil)
	api := func(w http.ResponseWriter, r *http.Request) {
		if revoked.Load() {
			r.Header.Del("Authorization")
		}
		knows(w, r)
	}
	s := consoleOf(t, api, asServer, func(o *Options) { o.pingEvery = time.Millisecond })
	conn, _ := tab(t, s, "one", nil)
	revoked.Store(true)
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.ClosePolicyViolation) {
		t.Errorf("it ends with %v", err)
	}
}

// TestPagesLearnThatTheClusterIsSilent: a page without streams learns that the API does not answer, once, and that it
// answers again. A list gets the reason without the request's address.
func TestPagesLearnThatTheClusterIsSilent(t *testing.T) {
	var silent atomic.Bool
	silent.Store(true)
	api := func(w http.ResponseWriter, r *http.Request) {
		if silent.Load() {
			panic(http.ErrAbortHandler) // ends the connection without an answer
		}
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, `{}`)
			return
		}
		_, _ = io.WriteString(w, `{"status":{"userInfo":{"username":"ada"}}}`)
	}
	s := consoleOf(t, api, func(o *Options) { o.pingEvery = time.Millisecond })
	conn, _ := tab(t, s, "good", nil)
	m := next(t, conn, "state")
	testenv.True(t, m["ok"] == false && m["reason"] == reasonNoAnswer && m["id"] == 0.0, "the page is told %v", m)
	testenv.NoError(t, conn.WriteJSON(pageMessage{ID: 1, Op: "list", Path: "/api/v1/pods"}))
	m = next(t, conn, "state")
	testenv.True(t, m["reason"] == reasonNoAnswer && m["id"] == 1.0 && !strings.Contains(m["message"].(string), "/api/v1"), "the list is told %v", m)
	testenv.NoError(t, conn.WriteJSON(pageMessage{ID: 1, Op: "close"}))
	silent.Store(false)
	for m = next(t, conn, "state"); m["id"] != 0.0 || m["ok"] != true; m = next(t, conn, "state") {
		testenv.False(t, m["ok"] == true, "the list is told %v", m)
	}
}

func TestSessionOfAServer(t *testing.T) {
	s := consoleOf(t, usersAPI(map[string]string{"one": "ada"}, nil), asServer)
	if code, text, _ := roundTrip(t, s, "GET", "/session", "", "Authorization", "Bearer one"); code != http.StatusOK || !strings.Contains(text, `"user":"ada"`) {
		t.Errorf("%d %s", code, text)
	}
	if code, text, _ := roundTrip(t, s, "GET", "/session", "", "Authorization", "Bearer two"); code != http.StatusUnauthorized || !strings.Contains(text, "does not accept this token") {
		t.Errorf("a foreign token: %d %s", code, text)
	}
}

func TestNoLeaderIsExplained(t *testing.T) {
	s := consoleOf(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = io.WriteString(w, `{"kind":"Status","code":500,"message":"etcdserver: no leader"}`)
	})
	code, text, _ := roundTrip(t, s, "GET", "/object?path=/api/v1/namespaces/a", "", "Authorization", bearer)
	testenv.False(t, code != http.StatusInternalServerError || !strings.Contains(text, "a majority of its servers"), "%d %s", code, text)
	conn, _ := tab(t, s, "good", nil)
	testenv.NoError(t, conn.WriteJSON(pageMessage{ID: 1, Op: "list", Path: "/api/v1/pods"}))
	if m := next(t, conn, "state"); m["ok"] != false || !strings.Contains(m["message"].(string), "a majority of its servers") {
		t.Errorf("a list says %v", m)
	}
}
