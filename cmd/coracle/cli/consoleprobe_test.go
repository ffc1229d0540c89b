// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func probe(ctx context.Context, config *rest.Config) (said string, err error) {
	var out bytes.Buffer
	a := &App{Stdout: &out}
	err = a.probeConsole(ctx, config, "here", time.Minute)
	return out.String(), err
}

func TestProbeOfTheCluster(t *testing.T) {
	for name, c := range map[string]struct {
		code       int
		body, want string
	}{
		"a console is allowed":     {200, `{"disabled":false}`, ""},
		"the console is disabled":  {200, `{"disabled":true}`, "--disable console"},
		"another kind of cluster":  {404, `{"kind":"Status"}`, ""},
		"a cluster without a role": {403, `{"kind":"Status"}`, ""},
		"an answer that is none":   {200, `<html>`, ""},
		"foreign credentials":      {401, `{"kind":"Status"}`, "does not accept the credentials of context here"},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != status.ConsoleSettingPath || r.Header.Get("Authorization") != "Bearer mine" {
					t.Errorf("the cluster got %s of %q", r.URL, r.Header.Get("Authorization"))
				}
				w.WriteHeader(c.code)
				_, _ = w.Write([]byte(c.body))
			}))
			defer s.Close()
			_, err := probe(t.Context(), &rest.Config{Host: s.URL, BearerToken: "mine"})
			testenv.False(t, c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)),
				"%v, want %q", err, c.want)
		})
	}
}

func TestProbeOfAForeignServer(t *testing.T) {
	s := httptest.NewTLSServer(http.NotFoundHandler())
	defer s.Close()
	testenv.WantError(t, testenv.Err(probe(t.Context(), &rest.Config{Host: s.URL})), "is not the one of the kubeconfig")
}

func TestSilentClusterDoesNotEndTheConsole(t *testing.T) {
	said, err := probe(t.Context(), &rest.Config{Host: "http://" + testenv.Address(t, "127.0.0.1:0")}) // nothing listens there
	testenv.False(t, err != nil || !strings.Contains(said, "does not answer"), "%q, %v", said, err)
}

// loginProgram is a kubeconfig's, which does what a shell script says.
func loginProgram(t *testing.T, script string, mode api.ExecInteractiveMode) *rest.Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "login")
	testenv.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o700)) //nolint:gosec // it is run
	return &rest.Config{Host: "https://127.0.0.1:1", ExecProvider: &api.ExecConfig{
		Command: path, APIVersion: "client.authentication.k8s.io/v1", InteractiveMode: mode, StdinUnavailable: true, StdinUnavailableMessage: noStdin,
	}}
}

func TestLoginProgramThatFails(t *testing.T) {
	_, err := probe(t.Context(), loginProgram(t, "exit 3\n", api.IfAvailableExecInteractiveMode))
	testenv.WantError(t, err, "the login program of context here", "exit code 3")
}

// TestLoginProgramMayTakeLongerThanTheRequest: the time of the request begins when there are credentials.
func TestLoginProgramMayTakeLongerThanTheRequest(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"disabled":true}`))
	}))
	defer s.Close()
	config := loginProgram(t, `sleep 2.1
echo '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"mine"}}'
`, api.NeverExecInteractiveMode)
	config.Host = s.URL
	testenv.WantError(t, askForConsole(t.Context(), config, "here", 2*time.Second), "--disable console")
}

func TestLoginProgramThatAsks(t *testing.T) {
	_, err := probe(t.Context(), loginProgram(t, "read password\n", api.AlwaysExecInteractiveMode))
	if err == nil || !strings.Contains(err.Error(), "cannot support interactive mode") { // in a terminal it goes on with noStdin
		t.Error(err)
	}
}

func TestLoginProgramThatIsStuckIsNamed(t *testing.T) {
	config := loginProgram(t, "touch $0.begun; while kill -0 $PPID 2>/dev/null; do sleep 0.1; done\n", api.NeverExecInteractiveMode)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &firstLine{found: make(chan string, 1)}
	ended := make(chan error, 1)
	go func() { ended <- (&App{Stdout: out}).probeConsole(ctx, config, "here", time.Millisecond) }()
	select {
	case line := <-out.found:
		testenv.False(t, !strings.Contains(line, config.ExecProvider.Command) || !strings.Contains(line, "Ctrl-C"), "it says %q", line)
	case <-time.After(2 * time.Minute):
		t.Fatal("it says nothing")
	}
	testenv.Until(t, 2*time.Minute, "the script has begun", func() bool { // it says so by a file
		_, err := os.Stat(config.ExecProvider.Command + ".begun")
		return err == nil
	})
	cancel()
	testenv.ErrorIs(t, <-ended, context.Canceled)
}

// firstLine hands on what is written first.
type firstLine struct{ found chan string }

func (f *firstLine) Write(text []byte) (int, error) {
	select {
	case f.found <- string(text):
	default:
	}
	return len(text), nil
}
