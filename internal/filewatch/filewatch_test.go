// SPDX-License-Identifier: Apache-2.0

package filewatch_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/filewatch"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestFilesArePolledWithoutInotify: without an inotify instance the caller polls and the board says so, until there is
// one.
func TestFilesArePolledWithoutInotify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		board := status.NewBoard(time.Now)
		w := filewatch.New(filewatch.Options{What: "things", Board: board, Logger: slog.New(slog.DiscardHandler),
			New: func() (*fsnotify.Watcher, error) { return nil, unix.EMFILE }})
		defer w.Close()
		dirs := []string{t.TempDir(), t.TempDir()}
		for range 2 {
			for _, d := range dirs {
				w.Add(d)
			}
			testenv.Require(t, w.Events() == nil && w.Errors() == nil, "there are notices")
			began := time.Now()
			<-w.Poll()
			testenv.Equal(t, time.Since(began), filewatch.Every, "polled after")
		}
		if c := board.Components(); len(c) != 1 || c[0].State != status.Degraded {
			t.Errorf("the board says %+v", c)
		}
	})
}

// TestInotifyIsUsedAgainOncePossible: a folder for which there is no room is polled, and noticed at once again when
// there is. No line is there before.
func TestInotifyIsUsedAgainOncePossible(t *testing.T) {
	board, able := status.NewBoard(time.Now), false
	dir := t.TempDir()
	w := filewatch.New(filewatch.Options{What: "things", Board: board, Logger: slog.New(slog.DiscardHandler),
		New: func() (*fsnotify.Watcher, error) {
			if !able {
				return nil, unix.EMFILE
			}
			return fsnotify.NewWatcher()
		}})
	defer w.Close()
	testenv.Equal(t, len(board.Components()), 0, "a line without trouble:")
	w.Add(dir)
	testenv.Require(t, w.Poll() != nil, "it does not poll")
	able = true
	w.Add(dir)
	w.Add(filepath.Join(dir, "missing"))
	testenv.True(t, w.Poll() == nil, "it is polled on although the kernel gives notices")
	if c := board.Components(); len(c) != 1 || c[0].State != status.Running {
		t.Errorf("the board says %+v", c)
	}
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	if e := <-w.Events(); filepath.Base(e.Name) != "file" {
		t.Errorf("noticed %v", e)
	}
}

// TestNextWatcherIsNotStopped: a watcher that was closed without notices leaves a line; the next one that has them says
// that it runs.
func TestNextWatcherIsNotStopped(t *testing.T) {
	board, dir := status.NewBoard(time.Now), t.TempDir()
	o := filewatch.Options{What: "things", Board: board, Logger: slog.New(slog.DiscardHandler)}
	o.New = func() (*fsnotify.Watcher, error) { return nil, unix.EMFILE }
	state := func() status.State {
		t.Helper()
		c := board.Components()
		testenv.Require(t, len(c) == 1, "the board says %+v", c)
		return c[0].State
	}
	first := filewatch.New(o)
	first.Add(dir)
	first.Close()
	testenv.Equal(t, state(), status.Stopped, "after the end it is")
	for _, folder := range []string{dir, filepath.Join(dir, "missing")} {
		o.New = fsnotify.NewWatcher
		next := filewatch.New(o)
		next.Add(folder)
		testenv.Equal(t, state(), status.Running, "with notices it is")
		next.Close()
		if got := state(); got != status.Stopped {
			t.Errorf("after the end it is %s again", got)
		}
	}
}
