// SPDX-License-Identifier: Apache-2.0

package console

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// consoleOf makes a console whose API is answered by api, and whose one token is "good".
func consoleOf(t *testing.T, api http.HandlerFunc, change ...func(*Options)) *httptest.Server {
	t.Helper()
	apiServer := httptest.NewServer(api)
	t.Cleanup(apiServer.Close)
	var page bytes.Buffer
	z := gzip.NewWriter(&page)
	_, _ = z.Write([]byte("<!doctype html>"))
	_ = z.Close()
	o := Options{
		Mode: ModeLoopback, Hosts: loopbackName, Files: fstest.MapFS{"index.html.gz": {Data: page.Bytes()}},
		Login: func(code string) (string, error) {
			if code != "code" {
				return "", errors.New("no such code")
			}
			return "good", nil
		},
		User: func(token string) (*rest.Config, bool) { return &rest.Config{Host: apiServer.URL}, token == "good" },
	}
	for _, f := range change {
		f(&o)
	}
	h := testenv.Must(New(o))(t)
	s := httptest.NewServer(h)
	t.Cleanup(func() { h.Close(); s.Close() })
	return s
}

// noAPI is an API that must not be asked.
func noAPI(t *testing.T) http.HandlerFunc {
	t.Helper()
	return func(_ http.ResponseWriter, r *http.Request) { t.Errorf("the API got %s %s", r.Method, r.URL) }
}

// roundTrip makes a request and reads the answer; headers are pairs.
func roundTrip(t *testing.T, s *httptest.Server, method, path, body string, headers ...string) (int, string, http.Header) {
	t.Helper()
	r := testenv.Must(http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(body)))(t)
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			r.Host = headers[i+1]
			continue
		}
		r.Header.Set(headers[i], headers[i+1])
	}
	response := testenv.Must(http.DefaultClient.Do(r))(t)
	defer response.Body.Close()
	text := testenv.Must(io.ReadAll(response.Body))(t)
	return response.StatusCode, string(text), response.Header
}

const bearer = "Bearer good"

var asUser = []string{"Authorization", bearer}

// An attacker who has a site frames the console or loads its files; no response must lack the policy that forbids it,
// or have a header of the API that loosens it.
func TestEveryAnswerHasThePolicy(t *testing.T) {
	s := consoleOf(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("Access-Control-Allow-Origin", "*")
	})
	for _, path := range []string{"/", "/none", "/mode", "/session", "/k8s/api/v1/pods"} {
		_, _, header := roundTrip(t, s, "GET", path, "", "Authorization", bearer)
		for name, want := range map[string]string{
			"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
			"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin", "X-Frame-Options": "DENY",
			"Set-Cookie": "", "Access-Control-Allow-Origin": "",
		} {
			testenv.Equal(t, header.Get(name), want, "%s: %s is", path, name)
		}
	}
}

// An attacker who is a user sends headers that name another user; the API must not get them.
func TestOnlyListedHeadersReachTheAPI(t *testing.T) {
	got := make(chan http.Header, 1)
	s := consoleOf(t, func(_ http.ResponseWriter, r *http.Request) { got <- r.Header })
	code, _, _ := roundTrip(t, s, "GET", "/k8s/api/v1/pods", "", "Authorization", bearer, "Accept", "application/json",
		"Impersonate-User", "admin", "X-Remote-User", "admin", "X-Forwarded-For", "10.0.0.1", "Cookie", "a=b")
	testenv.Require(t, code == http.StatusOK, "the answer is %d", code)
	header := <-got
	for name := range header {
		switch name {
		case "Accept", "Accept-Encoding", "User-Agent":
		default:
			t.Errorf("the API got %s: %s", name, header.Get(name))
		}
	}
}

// An attacker who guesses the code of a login, or has one that was used or is too old, logs in with it; the console
// must not give out its token.
func TestCodeIsGoodOnce(t *testing.T) {
	l := &Loopback{token: "t"}
	l.code, l.expires = "c", time.Now().Add(time.Minute)
	testenv.Fails(t, testenv.Err(l.login("wrong")), "another code was taken")
	if token, err := l.login("c"); token != "t" || err != nil {
		t.Errorf("the login: %q, %v", token, err)
	}
	testenv.Fails(t, testenv.Err(l.login("c")), "the code was taken twice")
	testenv.Fails(t, testenv.Err(l.login("")), "no code was taken")
	l.code, l.expires = "c", time.Now().Add(-time.Second)
	testenv.Fails(t, testenv.Err(l.login("c")), "a code that is too old was taken")
}

// An attacker who is a user asks for paths of the API that lead to a pod, a node or nowhere; the console must not send
// them on.
func TestPathsOfTheAPI(t *testing.T) {
	for path, good := range map[string]bool{
		"/api/v1/namespaces/a/configmaps/proxy": true, "/api/v1/namespaces/proxy/pods": true, "/apis/apps/v1/deployments": true, "/version": true,
		"/api/v1/namespaces/a/pods/b/log": true, "/api/v1/namespaces/a/pods/proxy/log": true, "/openapi/v3/apis/apps/v1": true,
		"": false, "api/v1": false, "/metrics": false, "/api/v1/../../metrics": false, "/api/v1//pods": false, "/api/v1/nodes/a/proxy": false,
		"/api/v1/nodes/a?x": false, "/coracle/ca": false, "/apis/a/v1/namespaces/b/things/c/proxy/d": false,
	} {
		testenv.Equal(t, (apiPath(http.MethodGet, path) == nil), good, "%q:", path)
	}
}

// An API that is none does no more than give a bad answer.
func TestAnswersOfAFalseAPI(t *testing.T) {
	redirected := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer redirected.Close()
	s := consoleOf(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/moved"):
			http.Redirect(w, r, redirected.URL, http.StatusFound)
		default:
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, `{"kind":"Status","code":7,"message":"odd"}`)
		}
	})
	for path, want := range map[string]int{
		"/k8s/api/v1/namespaces/moved": 502, "/object?path=/api/v1/namespaces/moved": 502,
		"/object?path=/api/v1/namespaces/a": 502, "/session": 502,
		"/object?path=/api/v1/namespaces": 400, "/object?path=/api/v1/namespaces/a/pods/b/log": 400,
	} {
		if code, text, _ := roundTrip(t, s, "GET", path, "", "Authorization", bearer); code != want {
			t.Errorf("%s: %d %s, want %d", path, code, text, want)
		}
	}
}

func TestOnlyUsersKeepAConsoleUp(t *testing.T) {
	s := consoleOf(t, noAPI(t))
	h, _ := s.Config.Handler.(*Handler)
	h.used.Store(0)
	roundTrip(t, s, "GET", "/", "")
	roundTrip(t, s, "GET", "/mode", "")
	roundTrip(t, s, "GET", "/session", "", "Authorization", "Bearer bad")
	testenv.Equal(t, h.used.Load(), 0, "requests without a session count as use:")
}
