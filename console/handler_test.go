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

func TestRequestsOfOtherSitesAreRefused(t *testing.T) {
	s := consoleOf(t, noAPI(t))
	for name, c := range map[string]struct {
		method, path string
		headers      []string
		want         int
	}{
		"another name for our address (DNS rebinding)":   {"GET", "/", []string{"Host", "evil.example"}, 403},
		"another port (ssh -L)":                          {"GET", "/", []string{"Host", "127.0.0.1:9"}, 200},
		"another site's script":                          {"POST", "/login", []string{"Origin", "http://evil.example", "Content-Type", "application/json"}, 403},
		"another port's page":                            {"POST", "/login", []string{"Origin", "http://127.0.0.1:1", "Content-Type", "application/json"}, 403},
		"another site's image":                           {"GET", "/", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Dest", "image"}, 403},
		"a link on another site":                         {"GET", "/", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Dest", "document"}, 200},
		"a form, plain text":                             {"POST", "/login", []string{"Content-Type", "text/plain"}, 415},
		"a form, as forms are":                           {"POST", "/login", []string{"Content-Type", "application/x-www-form-urlencoded"}, 415},
		"a form with files":                              {"POST", "/login", []string{"Content-Type", "multipart/form-data"}, 415},
		"a login without a type":                         {"POST", "/login", nil, 415},
		"no credentials":                                 {"GET", "/k8s/api/v1/pods", nil, 401},
		"a foreign token":                                {"GET", "/k8s/api/v1/pods", []string{"Authorization", "Bearer bad"}, 401},
		"an empty token":                                 {"GET", "/k8s/api/v1/pods", []string{"Authorization", "Bearer "}, 401},
		"a write without a type":                         {"POST", "/k8s/api/v1/pods", asUser, 415},
		"the proxy of a pod":                             {"GET", "/k8s/api/v1/namespaces/a/pods/b/proxy/", asUser, 403},
		"the proxy of a Service, with a path":            {"GET", "/k8s/api/v1/namespaces/a/services/b/proxy/c/d", asUser, 403},
		"the proxy of a node":                            {"GET", "/k8s/api/v1/nodes/b/proxy/logs", asUser, 403},
		"the older way to it":                            {"GET", "/k8s/api/v1/proxy/nodes/b", asUser, 403},
		"the proxy, escaped":                             {"GET", "/k8s/api/v1/nodes/b/%70roxy/", asUser, 403},
		"a slash that is escaped":                        {"GET", "/k8s/api/v1/nodes/b%2fproxy", asUser, 403},
		"a path of the API server that is no resource's": {"GET", "/k8s/debug/pprof/", asUser, 403},
		"a method that pages do not use":                 {"PROPFIND", "/k8s/api/v1/pods", asUser, 405},
	} {
		t.Run(name, func(t *testing.T) {
			body := ""
			if c.method == "POST" {
				body = `{"code":"x"}`
			}
			if code, text, _ := roundTrip(t, s, c.method, c.path, body, c.headers...); code != c.want {
				t.Errorf("%s %s: %d %s, want %d", c.method, c.path, code, text, c.want)
			}
		})
	}
}

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

func TestOnlyListedHeadersReachTheAPI(t *testing.T) {
	got := make(chan http.Header, 1)
	s := consoleOf(t, func(_ http.ResponseWriter, r *http.Request) { got <- r.Header })
	code, _, _ := roundTrip(t, s, "GET", "/k8s/api/v1/pods", "", "Authorization", bearer, "Accept", "application/json",
		"Impersonate-User", "admin", "X-Remote-User", "admin", "X-Forwarded-For", "10.0.0.1", "Cookie", "a=b")
	if code != http.StatusOK {
		t.Fatalf("the answer is %d", code)
	}
	header := <-got
	for name := range header {
		switch name {
		case "Accept", "Accept-Encoding", "User-Agent":
		default:
			t.Errorf("the API got %s: %s", name, header.Get(name))
		}
	}
}

func TestReadOnlyRefusesChanges(t *testing.T) {
	s := consoleOf(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && !strings.HasSuffix(r.URL.Path, "selfsubjectrulesreviews") {
			t.Errorf("the API got %s %s", r.Method, r.URL)
		}
		_, _ = io.WriteString(w, "{}")
	}, func(o *Options) { o.ReadOnly = true })
	json := []string{"Authorization", bearer, "Content-Type", "application/json"}
	for path, want := range map[string]int{
		"/k8s/api/v1/namespaces/a/pods":                             403,
		"/k8s/apis/authorization.k8s.io/v1/selfsubjectrulesreviews": 200,
		"/apply": 403, "/edit": 403,
	} {
		if code, text, _ := roundTrip(t, s, "POST", path, "{}", json...); code != want {
			t.Errorf("POST %s: %d %s, want %d", path, code, text, want)
		}
	}
}

func TestCodeIsGoodOnce(t *testing.T) {
	l := &Loopback{token: "t", loggedIn: make(chan struct{}, 1)}
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

// What a user whom the API does not know makes a server's console do is one question to the API.
func TestUnknownUsersCostOneQuestion(t *testing.T) {
	api := func(w http.ResponseWriter, r *http.Request) {
		testenv.True(t, strings.HasSuffix(r.URL.Path, "selfsubjectreviews"), "the API got %s %s", r.Method, r.URL)
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"kind":"Status","code":401,"reason":"Unauthorized","message":"Unauthorized"}`)
	}
	s := consoleOf(t, api, func(o *Options) {
		known := o.User
		o.Mode, o.Login, o.User = ModeServer, nil, func(string) (*rest.Config, bool) { config, _ := known("good"); return config, true }
	})
	for _, path := range []string{"/edit", "/apply"} {
		if code, text, _ := roundTrip(t, s, "POST", path, "no JSON", "Authorization", "Bearer junk"); code != http.StatusUnauthorized {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	for _, path := range []string{"/helm", "/helm/release?namespace=a&name=b", "/usedby?namespace=a&resource=secrets&name=b", "/schedule?schedule=@daily"} {
		if code, text, _ := roundTrip(t, s, "GET", path, "", "Authorization", "Bearer junk"); code != http.StatusUnauthorized {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	if _, code := tab(t, s, "junk", nil); code != http.StatusUnauthorized {
		t.Errorf("a WebSocket: %d", code)
	}
	for _, token := range []string{" ", "a b", "a\tb", "\u00e4"} {
		code, _, _ := roundTrip(t, s, "GET", "/session", "", "Authorization", "Bearer "+token)
		testenv.False(t, code != http.StatusUnauthorized && code != http.StatusBadRequest, "the token %q: %d", token, code)
	}
	if code, _, _ := roundTrip(t, s, "POST", "/login", "{}", "Content-Type", "application/json"); code == http.StatusOK {
		t.Error("a server's console has a login without the API")
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
