// SPDX-License-Identifier: Apache-2.0

package console

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// refusing is an API that refuses requests whose path ends in suffix with a status, and hands the rest to others.
func refusing(t *testing.T, suffix string, status int, others http.HandlerFunc) http.HandlerFunc {
	t.Helper()
	return func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, suffix) {
			others(w, r)
			return
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `{"kind":"Status","code":`+strconv.Itoa(status)+`,"message":"you may not"}`)
	}
}

// TestRequestsOfAttackersAreRefused: a request must get this status, and the API must get none but the console's own
// question and what the last rows are about. Rows with status 200 are what users may do.
func TestRequestsOfAttackersAreRefused(t *testing.T) {
	loopback := consoleOf(t, noAPI(t))
	server := consoleOf(t, refusing(t, "/selfsubjectreviews", 401, noAPI(t)), asServer)
	shows := consoleOf(t, func(w http.ResponseWriter, r *http.Request) {
		testenv.True(t, r.Method == http.MethodGet || strings.HasSuffix(r.URL.Path, "/selfsubjectrulesreviews"), "the API got %s %s", r.Method, r.URL)
	}, func(o *Options) { o.ReadOnly = true })
	noPods := consoleOf(t, refusing(t, "", 403, nil))
	noForward := consoleOf(t, refusing(t, "/portforward", 403, (&podAPI{t: t}).ServeHTTP))
	typed := []string{"Content-Type", "application/json"}
	const good, body = "good", `{"code":"code","path":"/api/v1/namespaces/a/pods/web","port":"80"}`
	for _, c := range []struct {
		name    string
		at      *httptest.Server
		token   string
		request string
		headers []string // pairs; of a WebSocket the Origin
		want    int
		says    string
	}{
		// A site in the browser of a user.
		{"another name for our address (DNS rebinding)", loopback, "", "GET /", []string{"Host", "evil.example"}, 403, ""},
		{"another port (ssh -L)", loopback, "", "GET /", []string{"Host", "127.0.0.1:9"}, 200, ""},
		{"another site's script", loopback, "", "POST /login", append(typed, "Origin", "http://evil.example"), 403, ""},
		{"another port's page", loopback, "", "POST /login", append(typed, "Origin", "http://127.0.0.1:1"), 403, ""},
		{"another site's image", loopback, "", "GET /", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Dest", "image"}, 403, ""},
		{"another site's WebSocket", loopback, good, "GET /ws", []string{"http://evil.example"}, 403, ""},
		{"a link on another site", loopback, "", "GET /", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Dest", "document"}, 200, ""},
		{"a form, plain text", loopback, "", "POST /login", []string{"Content-Type", "text/plain"}, 415, ""},
		{"a form, as forms are", loopback, "", "POST /login", []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, ""},
		{"a form with files", loopback, "", "POST /login", []string{"Content-Type", "multipart/form-data"}, 415, ""},
		{"a login without a type", loopback, "", "POST /login", nil, 415, ""},
		{"a login by OIDC without a provider", loopback, "", "POST /oidc/token", typed, 405, ""},
		{"a renewal without a provider", loopback, "", "POST /oidc/refresh", typed, 405, ""},

		// Another user of the machine, and one who would use the console's rights.
		{"no credentials", loopback, "", "GET /k8s/api/v1/pods", nil, 401, ""},
		{"a foreign token", loopback, "bad", "GET /k8s/api/v1/pods", nil, 401, ""},
		{"an empty token", loopback, "", "GET /k8s/api/v1/pods", []string{"Authorization", "Bearer "}, 401, ""},
		{"a WebSocket without a token", loopback, "", "GET /ws", nil, 401, ""},
		{"a WebSocket with a foreign token", loopback, "bad", "GET /ws", nil, 401, ""},
		{"a write without a type", loopback, good, "POST /k8s/api/v1/pods", nil, 415, ""},
		{"the proxy of a pod", loopback, good, "GET /k8s/api/v1/namespaces/a/pods/b/proxy/", nil, 403, ""},
		{"the proxy of a Service, with a path", loopback, good, "GET /k8s/api/v1/namespaces/a/services/b/proxy/c/d", nil, 403, ""},
		{"the proxy of a node", loopback, good, "GET /k8s/api/v1/nodes/b/proxy/logs", nil, 403, ""},
		{"the older way to it", loopback, good, "GET /k8s/api/v1/proxy/nodes/b", nil, 403, ""},
		{"the proxy, escaped", loopback, good, "GET /k8s/api/v1/nodes/b/%70roxy/", nil, 403, ""},
		{"a slash that is escaped", loopback, good, "GET /k8s/api/v1/nodes/b%2fproxy", nil, 403, ""},
		{"a path of the API server that is no resource's", loopback, good, "GET /k8s/debug/pprof/", nil, 403, ""},
		{"a method that pages do not use", loopback, good, "PROPFIND /k8s/api/v1/pods", nil, 405, ""},

		// What a user whom the API does not know makes a server's console do is one question to the API.
		{"an unknown user edits", server, "junk", "POST /edit", nil, 401, ""},
		{"an unknown user applies", server, "junk", "POST /apply", nil, 401, ""},
		{"an unknown user lists releases", server, "junk", "GET /helm", nil, 401, ""},
		{"an unknown user reads a release", server, "junk", "GET /helm/release?namespace=a&name=b", nil, 401, ""},
		{"an unknown user asks what uses a Secret", server, "junk", "GET /usedby?namespace=a&resource=secrets&name=b", nil, 401, ""},
		{"an unknown user asks what is wrong", server, "junk", "POST /health", nil, 401, ""},
		{"an unknown user asks for a schedule", server, "junk", "GET /schedule?schedule=@daily", nil, 401, ""},
		{"an unknown user's WebSocket", server, "junk", "GET /ws", nil, 401, ""},
		{"a token of a blank", server, " ", "GET /session", nil, 401, ""},
		{"a token with a blank", server, "a b", "GET /session", nil, 401, ""},
		{"a token with a tab", server, "a\tb", "GET /session", nil, 401, ""},
		{"a token of another script", server, "\u00e4", "GET /session", nil, 401, ""},
		{"a login without the API", server, "", "POST /login", typed, 405, ""},
		{"a forward on a server", server, good, "POST /forward", nil, 403, noForwards},

		// A user without the right.
		{"a write, read-only", shows, good, "POST /k8s/api/v1/namespaces/a/pods", typed, 403, ""},
		{"a question of what one may do, read-only", shows, good,
			"POST /k8s/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", typed, 200, ""},
		{"applying, read-only", shows, good, "POST /apply", typed, 403, ""},
		{"an edit, read-only", shows, good, "POST /edit", typed, 403, ""},
		{"a forward, read-only", shows, good, "POST /forward", nil, 403, readOnly},
		{"a forward without the right to see pods", noPods, good, "POST /forward", nil, 403, "you may not"},
		{"a forward without the right to forward", noForward, good, "POST /forward", nil, 403, "you may not"},
	} {
		t.Run(c.name, func(t *testing.T) {
			method, path, _ := strings.Cut(c.request, " ")
			headers := slices.Clone(c.headers)
			var code int
			var text string
			if path == "/ws" {
				_, code = tab(t, c.at, c.token, http.Header{"Origin": headers})
			} else {
				if c.token != "" {
					headers = append(headers, "Authorization", "Bearer "+c.token)
				}
				code, text, _ = roundTrip(t, c.at, method, path, map[string]string{"POST": body}[method], headers...)
			}
			testenv.True(t, code == c.want && strings.Contains(text, c.says), "%d %s, want %d %s", code, text, c.want, c.says)
		})
	}
}

// TestTabsOfAttackersAreClosed: an attacker who is a user sends by a tab what is too long or too much, or gives the tab
// of one user another one's token; the tab must not stay open. A stream keeps its request for as long as it lives, so
// that only a shell's input and a search may be long.
func TestTabsOfAttackersAreClosed(t *testing.T) {
	silent := consoleOf(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	server := consoleOf(t, usersAPI(map[string]string{"good": "ada", "eves": "eve"}, nil), asServer)
	streams := make([]pageMessage, maxStreams+1)
	for i := range streams {
		streams[i] = pageMessage{ID: int64(i), Op: "list", Path: "/api/v1/pods"}
	}
	for _, c := range []struct {
		name  string
		at    *httptest.Server
		sends []pageMessage
	}{
		{"a long request", silent, []pageMessage{{ID: 1, Op: "list", Path: "/api/v1/pods", Data: strings.Repeat("x", maxRequest)}}},
		{"a longer search", silent, []pageMessage{{ID: 1, Op: "search", Data: strings.Repeat("x", maxMessage)}}},
		{"too many streams", silent, streams},
		{"a token of another user", server, []pageMessage{{Op: "token", Data: "eves"}}},
		{"a token of no user", server, []pageMessage{{Op: "token", Data: "none"}}},
		{"no token", server, []pageMessage{{Op: "token"}}},
		{"a token that is none", server, []pageMessage{{Op: "token", Data: "a b"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, _ := tab(t, c.at, "good", nil)
			for _, m := range c.sends {
				_ = conn.WriteJSON(m) // the tab may be closed before all of it is written
			}
			var err error
			for err == nil {
				_, _, err = conn.ReadMessage()
			}
			testenv.False(t, errors.Is(err, os.ErrDeadlineExceeded), "the tab stays open")
		})
	}
}

// A page behind a forward has another port of 127.0.0.1, so another origin of the same site. Even if it knew the token,
// no request of its scripts is answered.
func TestPagesBehindForwardsAreRefused(t *testing.T) {
	s := consoleOf(t, noAPI(t))
	const origin = "http://127.0.0.1:23456"
	for _, route := range []struct{ method, path string }{
		{"GET", "/"}, {"GET", "/mode"}, {"POST", "/login"}, {"GET", "/session"}, {"GET", "/object?path=/api/v1/namespaces/a"}, {"POST", "/apply"},
		{"POST", "/edit"}, {"POST", "/forward"}, {"GET", "/forwards"}, {"DELETE", "/forward/1"},
		{"GET", "/k8s/api/v1/pods"}, {"DELETE", "/k8s/api/v1/namespaces/a"},
		{"GET", "/ws"},
	} {
		for name, headers := range map[string][]string{
			"a script's request":         {"Origin", origin, "Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty"},
			"a request of no CORS":       {"Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Dest", "script"},
			"a frame":                    {"Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"},
			"a browser without Metadata": {"Origin", origin},
		} {
			code, text, _ := roundTrip(t, s, route.method, route.path, "", append(headers, "Authorization", bearer, "Content-Type", "application/json")...)
			testenv.True(t, code == http.StatusForbidden, "%s %s by %s: %d %s", route.method, route.path, name, code, text)
		}
	}
	if _, code := tab(t, s, "good", http.Header{"Origin": {origin}}); code != http.StatusForbidden {
		t.Errorf("a WebSocket: %d", code)
	}
	if _, code := tab(t, s, "good", http.Header{"Sec-Fetch-Site": {"same-site"}, "Sec-Fetch-Dest": {"websocket"}}); code != http.StatusForbidden {
		t.Errorf("a WebSocket without Origin: %d", code)
	}
}
