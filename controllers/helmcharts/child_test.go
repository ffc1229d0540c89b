// SPDX-License-Identifier: Apache-2.0

package helmcharts

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestMain is the child, too: it is called as coracle would be.
func TestMain(m *testing.M) {
	if os.Args[0] == helmjob.Name {
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
		fmt.Fprintln(os.Stderr, "begun")
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
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", q.Socket)
	}}}
	r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://kubernetes/version?x=y", nil)
	if err != nil {
		return "", err
	}
	r.Header.Set("Impersonate-User", "another-user")
	r.Header.Set("Impersonate-Extra-Scopes", "all")
	r.Header.Set("Authorization", "Bearer mine")
	a, err := client.Do(r)
	if err != nil {
		return "", err
	}
	defer a.Body.Close()
	body, err := io.ReadAll(a.Body)
	return fmt.Sprintf("%s; GOMEMLIMIT=%s SECRET=%s", body, os.Getenv("GOMEMLIMIT"), os.Getenv("HELM_TEST_SECRET")), err
}

// listenersOf are the addresses, as the kernel writes them, at which a process listens by TCP.
func listenersOf(process string) (out []string) {
	own := map[string]bool{}
	files, _ := filepath.Glob(filepath.Join("/proc", process, "fd", "*"))
	for _, f := range files {
		to, _ := os.Readlink(f) // one that was closed meanwhile is no listener
		own[strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]")] = true
	}
	for _, table := range []string{"tcp", "tcp6"} {
		text, _ := os.ReadFile(filepath.Join("/proc", process, "net", table)) // there is no tcp6 where there is no IPv6
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 9 && f[3] == "0A" && own[f[9]] { // LISTEN, inode
				out = append(out, f[1])
			}
		}
	}
	return out
}

// children is an engine before an API server that repeats who asks. The listeners are those of this process when the
// last request came.
func children(t *testing.T) (c ChildEngine, listeners func() []string) {
	t.Helper()
	var during atomic.Pointer[[]string]
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		found := listenersOf("self")
		during.Store(&found)
		fmt.Fprint(w, r.URL, " ", r.Header["Impersonate-User"], r.Header["Impersonate-Group"], r.Header["Impersonate-Extra-Scopes"], r.Header["Authorization"])
	}))
	t.Cleanup(s.Close)
	return ChildEngine{
		Config: &rest.Config{Host: s.URL, BearerToken: "ours", Transport: s.Client().Transport}, Program: testenv.Must(os.Executable())(t), Dir: t.TempDir(),
	}, func() []string { return *during.Load() }
}

func TestChildReachesAPIOnlyByItsSocket(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { testenv.NoGoroutineLeft(t, before) }) // after the API server, which children closes
	t.Setenv("HELM_TEST_SECRET", "of the server")
	c, during := children(t)
	listeners := listenersOf("self")
	r := testenv.Must(c.Do(t.Context(), &helmjob.Request{Operation: helmjob.Uninstall, Seal: []byte("seal"), Namespace: "a", Release: "b"}))(t)
	want := "/version?x=y [" + User + "] [" + userGroup + "] [] [Bearer ours]; GOMEMLIMIT=160MiB SECRET="
	testenv.False(t, r.Message != want || r.Failed(), "it says %q, want %q", r.Message, want)
	if got := during(); len(listeners) != 1 || !slices.Equal(got, listeners) { // one: the test's API server
		t.Errorf("while the child works this process listens at %v, before at %v", got, listeners)
	}
	if left, err := os.ReadDir(c.Dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

// onWrite is a writer that calls a function.
type onWrite func()

func (f onWrite) Write(p []byte) (int, error) { f(); return len(p), nil }

// TestChildEndsWithTerm: the child ends with the term, whatever it does.
func TestChildEndsWithTerm(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { testenv.NoGoroutineLeft(t, before) }) // after the API server, which children closes
	c, _ := children(t)
	ctx, cancel := context.WithCancel(t.Context())
	begun := make(chan struct{})
	c.Logger = slog.New(slog.NewTextHandler(onWrite(sync.OnceFunc(func() { close(begun) })), &slog.HandlerOptions{Level: slog.LevelDebug}))
	done := make(chan error, 1)
	go func() {
		_, err := c.Do(ctx, &helmjob.Request{Operation: helmjob.Uninstall, Seal: []byte("seal"), Namespace: "a", Release: "hangs"})
		done <- err
	}()
	<-begun
	cancel()
	testenv.WantError(t, <-done, "canceled")
}
