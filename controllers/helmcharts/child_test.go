// SPDX-License-Identifier: Apache-2.0

package helmcharts

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-k8s/coracle/internal/helmjob"
	"github.com/coracle-k8s/coracle/internal/testenv"
)

// TestMain is the child, too: it is called as coracle-tools would be.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == helmjob.Name {
		os.Exit(beChild())
	}
	os.Exit(m.Run())
}

// beChild asks the API server for /version under another name than its own, and says what it got and where.
func beChild() int {
	line, err := bufio.NewReader(os.Stdin).ReadBytes('\n')
	q := &helmjob.Request{}
	if err == nil {
		err = json.Unmarshal(line, q)
	}
	if err == nil && q.Release == "hangs" {
		_, _ = io.Copy(io.Discard, os.Stdin)
		time.Sleep(time.Hour) // this is the child: it is ended
	}
	r := &helmjob.Result{}
	if err == nil {
		r.Message, err = asked(q)
	}
	if err != nil {
		r.Reason, r.Message = helmjob.Failed, err.Error()
	}
	_ = json.NewEncoder(os.Stdout).Encode(r)
	return 0
}

func asked(q *helmjob.Request) (string, error) {
	config, err := clientcmd.BuildConfigFromFlags("", q.Kubeconfig)
	if err != nil {
		return "", err
	}
	get := func(url string) (string, error) {
		r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		r.Header.Set("Impersonate-User", "somebody")
		r.Header.Set("Impersonate-Extra-Scopes", "all")
		r.Header.Set("Authorization", "Bearer mine")
		a, err := http.DefaultClient.Do(r)
		if err != nil {
			return "", err
		}
		defer a.Body.Close()
		body, err := io.ReadAll(a.Body)
		return strings.TrimSpace(string(body)), err
	}
	within, err := get(config.Host + "/version?x=y")
	if err != nil {
		return "", err
	}
	without, err := get(config.Host[:strings.LastIndex(config.Host, "/")] + "/version")
	return fmt.Sprintf("%s; without the secret: %s; from %s; GOMEMLIMIT=%s SECRET=%s", within, without, config.Host, os.Getenv("GOMEMLIMIT"), os.Getenv("HELM_TEST_SECRET")), err
}

// children is an engine before an API server that repeats who asks.
func children(t *testing.T) Children {
	t.Helper()
	var served atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		fmt.Fprint(w, r.URL, " ", r.Header["Impersonate-User"], r.Header["Impersonate-Group"], r.Header["Impersonate-Extra-Scopes"], r.Header["Authorization"], " ", served.Load())
	}))
	t.Cleanup(s.Close)
	return Children{Config: &rest.Config{Host: s.URL, BearerToken: "ours", Transport: s.Client().Transport}, Program: os.Executable}
}

func TestChild(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { testenv.NoGoroutineLeft(t, before) }) // after the API server, which children closes
	t.Setenv("HELM_TEST_SECRET", "of the server")
	c := children(t)
	r, err := c.Do(t.Context(), &helmjob.Request{Operation: helmjob.Uninstall, Seal: []byte("seal"), Namespace: "a", Release: "b"})
	if err != nil {
		t.Fatal(err)
	}
	want := "/version?x=y [" + User + "] [" + userGroup + "] [] [Bearer ours] 1; without the secret: this is not for you; from https://the API server; GOMEMLIMIT=160MiB SECRET="
	if r.Message != want || r.Failed() {
		t.Errorf("it says %q, want %q", r.Message, want)
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestChildEnds: with the term, whatever it does.
func TestChildEnds(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { testenv.NoGoroutineLeft(t, before) }) // after the API server, which children closes
	c := children(t)
	ctx, cancel := context.WithCancel(t.Context())
	begun := make(chan struct{})
	program := c.Program
	c.Program = func() (string, error) { close(begun); return program() }
	done := make(chan error, 1)
	go func() {
		_, err := c.Do(ctx, &helmjob.Request{Operation: helmjob.Uninstall, Seal: []byte("seal"), Namespace: "a", Release: "hangs"})
		done <- err
	}()
	<-begun
	cancel()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "canceled") {
		t.Errorf("it ended with %v", err)
	}
}
