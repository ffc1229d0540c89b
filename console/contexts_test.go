// SPDX-License-Identifier: Apache-2.0

package console

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// contextsOfTest serves contexts by their names, of which the first is the current one.
func contextsOfTest(t *testing.T, configs map[string]*rest.Config, names ...string) (*Loopback, *httptest.Server) {
	t.Helper()
	var page bytes.Buffer
	z := gzip.NewWriter(&page)
	testenv.NoError(t, z.Close())
	l := testenv.Must(newLoopback(LoopbackOptions{files: fstest.MapFS{"index.html.gz": {Data: page.Bytes()}}, Contexts: Contexts{
		Names: names, Current: names[0],
		Open: func(name string) (Context, error) {
			if configs[name] == nil {
				return Context{}, fs.ErrNotExist
			}
			return Context{Config: configs[name]}, nil
		},
		Check: func(_ string, c Context) error {
			client, err := rest.HTTPClientFor(c.Config)
			if err != nil {
				return err
			}
			answer, err := client.Get(c.Config.Host)
			if err == nil {
				_ = answer.Body.Close()
			}
			return err
		},
	}}))(t)
	s := httptest.NewServer(l)
	t.Cleanup(func() { l.closeAll(); s.Close() })
	return l, s
}

// clusterOf is a cluster that answers with its name, and fails the test when it gets credentials other than want.
func clusterOf(t *testing.T, name, want string) *rest.Config {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Authorization"); got != "Bearer "+want {
			t.Errorf("the cluster %s got the credentials %q", name, got)
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]string{"cluster": name})
	}))
	t.Cleanup(s.Close)
	return &rest.Config{Host: s.URL, BearerToken: want}
}

// No request below a context's address may use the credentials or the cluster of another one, and the login program of
// a context runs only once that context is used.
func TestContextsAreApart(t *testing.T) {
	program := filepath.Join(t.TempDir(), "login")
	testenv.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\ntouch $0.ran\n"+
		`echo '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"of-b"}}'`+"\n"), 0o700)) //nolint:gosec // it is run
	b := clusterOf(t, "b", "of-b")
	b.BearerToken = ""
	b.ExecProvider = &api.ExecConfig{Command: program, APIVersion: "client.authentication.k8s.io/v1", InteractiveMode: api.NeverExecInteractiveMode}
	l, s := contextsOfTest(t, map[string]*rest.Config{"a": clusterOf(t, "a", "of-a"), "b": b}, "a", "b")
	user := []string{"Authorization", "Bearer " + l.token}
	asks := func(path, want string) {
		t.Helper()
		if code, text, _ := roundTrip(t, s, "GET", path, "", user...); code != http.StatusOK || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s, want %s", path, code, text, want)
		}
	}
	asks("/c/a/k8s/version", `"a"`)
	asks("/k8s/version", `"a"`)
	asks("/c/b/contexts", `"current":"b"`)
	roundTrip(t, s, "GET", "/c/b/", "")
	roundTrip(t, s, "GET", "/c/b/k8s/version", "", "Authorization", "Bearer guessed")
	_, err := os.Stat(program + ".ran")
	testenv.ErrorIs(t, err, fs.ErrNotExist)
	asks("/c/b/k8s/version", `"b"`)
	testenv.NoError(t, testenv.Err(os.Stat(program+".ran")))
	asks("/c/a/k8s/version", `"a"`)
	// Addresses that would be cleaned to another context's.
	for _, path := range []string{"/c/b/k8s//version", "/c/b/../a/k8s/version", "/c/b/x/../../a/k8s/version", "/c/b/%2e%2e/a/k8s/version", "/c/b//k8s/version"} {
		r := testenv.Must(http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL, nil))(t)
		r.URL = testenv.Must(url.Parse(s.URL + path))(t)
		r.Header.Set("Authorization", "Bearer "+l.token)
		answer := testenv.Must(http.DefaultTransport.RoundTrip(r))(t)
		_ = answer.Body.Close()
		testenv.Equal(t, answer.StatusCode, http.StatusBadRequest, "%s is answered with", path)
	}
}

// An attacker who is another user of the machine asks for names; no answer may say which contexts there are.
func TestContextsAreSecret(t *testing.T) {
	l, s := contextsOfTest(t, map[string]*rest.Config{"a": clusterOf(t, "a", "of-a")}, "a", "broken")
	for _, path := range []string{"", "mode", "session", "contexts", "k8s/version"} {
		there, answer, _ := roundTrip(t, s, "GET", "/c/broken/"+path, "")
		not, other, _ := roundTrip(t, s, "GET", "/c/none/"+path, "")
		testenv.False(t, there != not || answer != other || strings.Contains(answer, "broken"), "%q: %d %s and %d %s", path, there, answer, not, other)
	}
	for name, want := range map[string]string{"none": "has no context", "broken": "reading context broken"} {
		code, text, _ := roundTrip(t, s, "GET", "/c/"+name+"/session", "", "Authorization", "Bearer "+l.token)
		testenv.False(t, code != http.StatusNotFound || !strings.Contains(text, want), "%s: %d %s", name, code, text)
	}
}

func TestAddressesOfContexts(t *testing.T) {
	names := []string{"a", ".", "..", "~", "~..", "a/b", "../a", "a b", "%2e%2e", "%", "ä\u202e", "a?b#c", `a\b`, "arn:aws:eks:eu:1:cluster/x"}
	for _, name := range names {
		u := testenv.Must(url.Parse("http://127.0.0.1/c/" + contextAddress(name) + "/k8s/a%2Fb"))(t)
		got, rest, found := contextOf(u)
		testenv.False(t, !found || got != name || rest != "/k8s/a%2Fb", "%q is at %s, which is %q, %q", name, u, got, rest)
		testenv.False(t, slices.Contains([]string{".", ".."}, contextAddress(name)), "%q is at %s, which browsers take away", name, u)
	}
}

// A login program that hangs holds only requests of its own context, for a time; one of it runs at once.
func TestContextThatIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		program := make(chan error)
		var runs atomic.Int64
		c := &openContext{name: "b", config: &rest.Config{ExecProvider: &api.ExecConfig{Command: "stuck"}}, timeout: contextTimeout}
		c.check = func() error { runs.Add(1); return <-program }
		begin := time.Now()
		for range 2 {
			err := c.await(t.Context())
			testenv.WantError(t, err, "context b", "stuck")
		}
		testenv.Equal(t, time.Since(begin), 2*contextTimeout, "two requests waited")
		testenv.Equal(t, runs.Load(), 1, "the program ran")
		program <- errors.New("exit code 3")
		synctest.Wait()
		go func() { program <- nil }()
		testenv.NoError(t, c.await(t.Context()))
		testenv.NoError(t, c.await(t.Context()))
		testenv.Equal(t, runs.Load(), 2, "the program ran")
	})
}
