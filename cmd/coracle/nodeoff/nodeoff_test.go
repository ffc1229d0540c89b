// SPDX-License-Identifier: Apache-2.0

package nodeoff

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// childEnv makes this test binary a process whose node ends it in the named way, with the marker of the second
// variable.
const childEnv, markerEnv = "NODEOFF_TEST_CHILD", "NODEOFF_TEST_MARKER"

func TestMain(m *testing.M) {
	if how := os.Getenv(childEnv); how != "" {
		n := New(Options{Marker: os.Getenv(markerEnv), Boot: "boot", Logger: slog.New(slog.DiscardHandler), GaveUp: errGaveUp})
		n.Run(context.Background(), func(context.Context) error {
			endProcess(n, how)
			select {}
		})
	}
	os.Exit(m.Run())
}

var errGaveUp = errors.New("gave up")

// endProcess ends this process: a word for each step.
func endProcess(n *Node, how string) {
	for step := range strings.FieldsSeq(how) {
		switch step {
		case "ready":
			n.Ready()
		case "panic": // Run's deferred calls run
			panic("page 45 is damaged")
		case "panic-elsewhere":
			go func() { panic("page 45 is damaged") }()
			select {}
		case "exit":
			os.Exit(1)
		case "kill":
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
}

// start is a start of the process in a test.
type start struct {
	*Node
	t      *testing.T
	board  *status.Board
	ran    int  // how often the node was run
	off    bool // Off was called
	refuse error
	ctx    context.Context
	stop   context.CancelCauseFunc
	done   chan struct{}
}

var errRestart = errors.New("restart")

// newStart starts a process whose node runs by run.
func newStart(t *testing.T, marker string, run func(context.Context) error) *start {
	t.Helper()
	s := &start{t: t, board: status.NewBoard(time.Now), done: make(chan struct{})}
	s.ctx, s.stop = context.WithCancelCause(t.Context())
	s.Node = New(Options{
		Marker: marker, Boot: "boot", GaveUp: errGaveUp, Part: s.board.Part("node"), Logger: slog.New(slog.DiscardHandler),
		Off: func() { s.off = true }, MayRestart: func(context.Context) error { return s.refuse }, Restart: func() { s.stop(errRestart) },
	})
	go func() {
		defer close(s.done)
		s.Run(s.ctx, func(ctx context.Context) error { s.ran++; return run(ctx) })
	}()
	return s
}

// end ends the process with a cause and waits for it.
func (s *start) end(cause error) { s.stop(cause); <-s.done }

// restarted returns after how long the process restarts itself, and fails the test if it does not within a day.
func (s *start) restarted() time.Duration {
	s.t.Helper()
	began := time.Now()
	select {
	case <-s.done:
	case <-time.After(24 * time.Hour):
		s.t.Fatal("the process does not restart itself")
	}
	testenv.True(s.t, errors.Is(context.Cause(s.ctx), errRestart), "the process ended by %v", context.Cause(s.ctx))
	return time.Since(began)
}

func runs(ctx context.Context) error { <-ctx.Done(); return nil }

func fails(context.Context) error { return errors.New("the kubelet ended") }

// TestFailedNodeIsTriedAgain: a node that fails is off while the process goes on, and is tried again by restarts after
// one minute, five, and every fifteen. A node that has run for a minute begins with one minute again.
func TestFailedNodeIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		marker := filepath.Join(t.TempDir(), "marker")
		for i, want := range []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, 15 * time.Minute} {
			s := newStart(t, marker, fails)
			synctest.Wait()
			c := s.board.Components()[0]
			testenv.True(t, s.off && s.ran == 1, "start %d: off %t, run %d times", i, s.off, s.ran)
			testenv.True(t, c.State == status.Failed && strings.Contains(c.Message, "the kubelet ended") && strings.Contains(c.Message, want.String()),
				"start %d: status says %+v", i, c)
			testenv.Equal(t, s.restarted(), want, "the node is tried again after")
		}
		s := newStart(t, marker, func(ctx context.Context) error {
			timer := time.After(2 * provenAfter)
			<-timer
			return fails(ctx)
		})
		testenv.Equal(t, s.restarted(), 2*provenAfter+time.Minute, "a node that has run for two minutes is tried again after")
	})
}

// TestNodeThatEndedTheProcessIsOff: the start after one in which the node ended the process does not run the node, and
// says why. A kill of a node that was ready does not count.
func TestNodeThatEndedTheProcessIsOff(t *testing.T) {
	for _, c := range []struct{ how, why string }{
		{"panic", "page 45 is damaged"}, {"panic-elsewhere", "page 45 is damaged"}, {"ready panic", "page 45 is damaged"}, {"exit", "was killed or exited"},
		{"kill", "was killed or exited"}, {"ready kill", ""},
	} {
		t.Run(c.how, func(t *testing.T) {
			marker := filepath.Join(t.TempDir(), "marker")
			child := exec.CommandContext(t.Context(), testenv.Must(os.Executable())(t))
			child.Env = append(os.Environ(), childEnv+"="+c.how, markerEnv+"="+marker)
			out, err := child.CombinedOutput()
			testenv.True(t, err != nil, "the child ended well: %s", out)
			synctest.Test(t, func(t *testing.T) {
				s := newStart(t, marker, runs)
				defer s.end(nil)
				synctest.Wait()
				message := s.board.Components()[0].Message
				testenv.True(t, s.off == (c.why != "") && (s.ran == 0) == s.off && strings.Contains(message, c.why),
					"the node is off: %t; status says %q", s.off, message)
				if s.off {
					testenv.Equal(t, s.restarted(), time.Minute, "the node is tried again after")
					next := newStart(t, marker, runs)
					synctest.Wait()
					testenv.Equal(t, next.ran, 1, "after the restart the node was run")
					next.end(nil)
				}
			})
		})
	}
}

// TestMarkerOfNodesStart: what is left of the marker, and what the next start makes of it.
func TestMarkerOfNodesStart(t *testing.T) {
	long := strings.Repeat("x", 3*readAtMost)
	for name, c := range map[string]struct {
		content string
		off     bool
		longer  time.Duration // of the next restart
	}{
		"empty, as on a full disk": {content: "", off: true},
		"half written":             {content: `{"Boot":"boot","Fail`, off: true},
		"no line feed":             {content: `{"Boot":"boot","Failures":1}`, off: true},
		"negative":                 {content: `{"Boot":"boot","Failures":-3}` + "\n", off: true},
		"of another boot":          {content: `{"Boot":"other","Failures":1}` + "\npanic: x\n"},
		"of another version":       {content: `{"Boot":"boot","Program":"/versions/2/coracle","Failures":1}` + "\npanic: x\n"},
		"to be tried":              {content: `{"Boot":"boot","Failures":9,"Try":true}` + "\n"},
		"half of ready":            {content: `{"Boot":"boot"}` + "\nrea", off: true},
		"many failures":            {content: `{"Boot":"boot","Failures":12}` + "\npanic: x\n", off: true, longer: 14 * time.Minute},
		"a long reason":            {content: `{"Boot":"boot"}` + "\n" + long, off: true},
	} {
		t.Run(name, func(t *testing.T) {
			marker := filepath.Join(t.TempDir(), "marker")
			testenv.NoError(t, os.WriteFile(marker, []byte(c.content), 0o600))
			synctest.Test(t, func(t *testing.T) {
				s := newStart(t, marker, runs)
				synctest.Wait()
				testenv.Equal(t, s.off, c.off, "the node is off:")
				testenv.True(t, len(s.board.Components()[0].Message) < 2*readAtMost, "the status has a long text")
				if c.off {
					testenv.Equal(t, s.restarted(), time.Minute+c.longer, "the node is tried again after")
				} else {
					s.end(nil)
				}
			})
		})
	}
}

// TestMarkerIsRemoved: an orderly end of the process and a minute of running leave no marker; an end by a library does.
func TestMarkerIsRemoved(t *testing.T) {
	slow := func(ctx context.Context) error { <-ctx.Done(); time.Sleep(time.Hour); return nil }
	for name, c := range map[string]struct {
		run    func(context.Context) error
		before time.Duration // of the check, after the start
		cause  error
		stays  bool
	}{
		"running":              {run: runs, before: provenAfter - 1, stays: true},
		"proven":               {run: runs, before: provenAfter + 1},
		"stopped":              {run: runs, before: 1, cause: context.Canceled},
		"slow to stop":         {run: slow, before: 1, cause: context.Canceled},
		"stopped while off":    {run: fails, before: 1, cause: context.Canceled},
		"off":                  {run: fails, before: 1, stays: true},
		"a library ended it":   {run: runs, before: 1, cause: errGaveUp, stays: true},
		"it did so while off":  {run: fails, before: 1, cause: errGaveUp, stays: true},
		"it did so much later": {run: runs, before: provenAfter + 1, cause: errGaveUp},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				marker := filepath.Join(t.TempDir(), "marker")
				s := newStart(t, marker, c.run)
				time.Sleep(c.before)
				if c.cause != nil {
					s.stop(c.cause)
				}
				synctest.Wait()
				_, err := os.Stat(marker)
				testenv.Equal(t, err == nil, c.stays, "there is a marker:")
				s.end(context.Canceled)
			})
		})
	}
}

// TestNodeRunsWithoutMarker: a marker that cannot be written does not keep the node off.
func TestNodeRunsWithoutMarker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStart(t, filepath.Join(t.TempDir(), "missing", "marker"), runs)
		synctest.Wait()
		testenv.True(t, s.ran == 1 && !s.off, "the node was run %d times", s.ran)
		s.end(context.Canceled)
	})
}

// TestRestartWaitsForMajority: while a restart would cost the quorum there is none, and the status says what it waits
// for.
func TestRestartWaitsForMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStart(t, filepath.Join(t.TempDir(), "marker"), fails)
		synctest.Wait()
		s.refuse = errors.New("only this server and one of two others answer")
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		message := s.board.Components()[0].Message
		testenv.True(t, strings.Contains(message, s.refuse.Error()) && strings.Contains(message, "the kubelet ended"), "status says %q", message)
		s.refuse = nil
		testenv.True(t, s.restarted() <= retryWaits[0], "the restart is late")
	})
}

// TestFullDiskHoldsRestart: a try that cannot be recorded would only be a restart without the node.
func TestFullDiskHoldsRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		marker := filepath.Join(t.TempDir(), "marker")
		s := newStart(t, marker, fails)
		synctest.Wait()
		testenv.NoError(t, errors.Join(os.Remove(marker), os.Symlink("/dev/full", marker)))
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		message := s.board.Components()[0].Message
		testenv.True(t, strings.Contains(message, syscall.ENOSPC.Error()), "status says %q", message)
		testenv.NoError(t, os.Remove(marker))
		testenv.True(t, s.restarted() <= retryWaits[0], "the restart is late")
	})
}
