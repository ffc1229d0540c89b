// SPDX-License-Identifier: Apache-2.0

package status

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/internal/unixsocket"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// clock is a time that a test moves.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func TestBoardReportsChangesOnly(t *testing.T) {
	c := &clock{time.Unix(1000, 0)}
	b := NewBoard(c.Now)
	store, api := b.Part("store"), b.Part("API server")
	testenv.Equal(t, b.Part("store").line, store.line, "the same name makes a second line:")
	changed := b.Changed()
	c.now = time.Unix(1010, 0)
	store.Set(Running, "leads")
	select {
	case <-changed:
	default:
		t.Error("the change was not notified")
	}
	c.now = time.Unix(1020, 0)
	changed = b.Changed()
	store.Set(Running, "leads")
	select {
	case <-changed:
		t.Error("a report of nothing new is a change")
	default:
	}
	store.Set(Running, "leads term 2")
	got := b.Components()
	if len(got) != 2 || got[0].Name != "store" || got[0].Since != time.Unix(1010, 0) || got[0].Message != "leads term 2" || got[1].State != Starting {
		t.Errorf("got %+v", got)
	}
	api.Set(Failed, "port 6443 is taken")
	(*Part)(nil).Set(Running, "a part without a board does no harm")
}

// serve starts a server at a socket and returns what stops it.
func serve(t *testing.T, socket string, b *Board) (*Server, func()) {
	t.Helper()
	s := NewServer(socket, Report{Role: "server", Version: "v1", Node: "n", DataDir: "/d", Started: time.Unix(1, 0)}, b)
	l := testenv.Must(s.Listen())(t)
	return s, testenv.Run(t, func(ctx context.Context) error { return s.Serve(ctx, l) })
}

// TestLongStartIsAProblem: a part that does not come to an end of its start is wrong, even where it reports nothing.
func TestLongStartIsAProblem(t *testing.T) {
	for _, tt := range []struct {
		state   State
		ago     time.Duration
		message string
		want    string
	}{
		{Starting, time.Minute, "", "[]"},
		{Starting, 3 * time.Minute, "", "[containerd: still starting after 3m0s]"},
		{Starting, 3 * time.Minute, "no disk", "[containerd: still starting after 3m0s: no disk]"},
		{Running, 3 * time.Minute, "", "[]"},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := NewBoard(time.Now)
			b.Part("containerd").Set(tt.state, tt.message)
			time.Sleep(tt.ago) // fake time
			testenv.Equal(t, fmt.Sprint(makeReport(Report{}, b).Problems), tt.want, "%s for %v:", tt.state, tt.ago)
		})
	}
}

func TestClientGetsServersStatus(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "run", "s")
	ctx := context.Background()
	c := NewClient(socket)
	testenv.ErrorIs(t, testenv.Err(c.Status(ctx)), ErrNotRunning, "without a socket")
	b := NewBoard(time.Now)
	b.Part("agent").Set(Degraded, "the image folder cannot be read")
	s, stop := serve(t, socket, b)
	s.Handle("POST /v1/thing", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "not now", http.StatusConflict) }))
	s.SetReady(time.Unix(5, 0))
	s.SetReady(time.Unix(9, 0))
	r := testenv.Must(c.Status(ctx))(t)
	if !r.Running || r.PID != os.Getpid() || r.Memory.RSS < r.Memory.Anonymous || r.Memory.Anonymous == 0 || !r.Ready.Equal(time.Unix(5, 0)) {
		t.Errorf("report %+v, memory %+v", r, r.Memory)
	}
	testenv.False(t, len(r.Problems) != 1 || r.Problems[0] != "agent: the image folder cannot be read", "problems %q", r.Problems)
	if err := c.Do(ctx, http.MethodPost, "/v1/thing", nil); err == nil || err.Error() != "not now" {
		t.Errorf("got %v", err)
	}
	if fi, err := os.Stat(socket); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode of the socket: %v %v", fi.Mode(), err)
	}
	testenv.ErrorIs(t, testenv.Err(NewServer(socket, Report{}, b).Listen()), unixsocket.ErrInUse, "a second server took the socket of a living one")
	stop()
	testenv.ErrorIs(t, testenv.Err(c.Status(ctx)), ErrNotRunning, "after the end")
	// What a killed process leaves is taken over.
	testenv.NoError(t, os.WriteFile(socket, nil, 0o600))
	testenv.ErrorIs(t, testenv.Err(c.Status(ctx)), ErrNotRunning, "with a dead socket")
	_, stop = serve(t, socket, b)
	stop()
}

// TestErrorsKeepSecrets: a request has keys for S3 in it, and may end with an error that only the connection
// made.
func TestErrorsKeepSecrets(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l := testenv.Must(net.Listen("unix", socket))(t)
	defer l.Close()
	go func() {
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			_ = c.Close() // without an answer, as a server that ends
		}
	}()
	err := NewClient(socket).Do(t.Context(), http.MethodPost, "/v1/snapshots?s3=hunter2", nil)
	testenv.False(t, err == nil || strings.Contains(err.Error(), "hunter2"), "the error is %v", err)
}

func TestMemoryIsParsedFromProcStatus(t *testing.T) {
	m := parseMemory([]byte("Name:\tx\nVmRSS:\t  2048 kB\nRssAnon:\t 1024 kB\nRssFile:\t 1000 kB\nVmSwap:\t 4 kB\n"))
	testenv.Equal(t, m, (Memory{RSS: 2 << 20, Anonymous: 1 << 20, File: 1000 << 10, Swap: 4 << 10}), "")
	testenv.WantError(t, testenv.Err(ReadMemory(0)), "process 0")
}

// TestPartIsAskedForItsProblem: a part that starts or runs is degraded while it has a problem, and since when the first
// report found that. One that has failed has its own reason.
func TestPartIsAskedForItsProblem(t *testing.T) {
	now := time.Unix(1000, 0)
	board := NewBoard(func() time.Time { return now })
	part := board.Part("store")
	problem := "writes are refused"
	part.SetCheck(func() string { return problem })
	part.Set(Failed, "its reason")
	if c := board.Components()[0]; c.State != Failed || c.Message != "its reason" {
		t.Errorf("%+v", c)
	}
	for _, state := range []State{Starting, Running} {
		part.Set(state, "")
		if c := board.Components()[0]; c.State != Degraded || c.Message != problem || !c.Since.Equal(time.Unix(1000, 0)) {
			t.Errorf("%+v", c)
		}
		now = now.Add(time.Minute)
	}
	problem = ""
	if c := board.Components()[0]; c.State != Running || c.Message != "" {
		t.Errorf("%+v", c)
	}
}
