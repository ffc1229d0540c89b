// SPDX-License-Identifier: Apache-2.0

// Package filewatch says when files change: by the kernel's notices, and where it gives none, by having the caller read
// them every Every.
//
// The kernel gives each user a limited number of inotify instances (fs.inotify.max_user_instances, 128 on many
// machines), which the pods' programs of root share with this process. A program that runs out of them must not fail.
// While notices are missing, a line on the board says so.
package filewatch

import (
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/coracle-k8s/coracle/internal/status"
)

// Every is how often files are to be read that the kernel gives no notices about.
const Every = 15 * time.Second

// Options say what is watched. Logger is required.
type Options struct {
	// What names the files in the log and on the board, as in "the host's resolvers".
	What string
	// Board may be nil. It has a line about these files once they were without notices.
	Board  *status.Board
	Logger *slog.Logger
	// New makes what receives the kernel's notices; fsnotify's when nil.
	New func() (*fsnotify.Watcher, error)
}

// Watcher watches folders. It is for one goroutine.
type Watcher struct {
	o       Options
	inner   *fsnotify.Watcher
	missing map[string]error // folders without notices
	ticker  *time.Ticker     // runs while there are any
}

// New makes a watcher of no folder.
func New(o Options) *Watcher {
	if o.New == nil {
		o.New = fsnotify.NewWatcher
	}
	return &Watcher{o: o, missing: map[string]error{}}
}

// Add watches a folder, and tries again for one that has no notices. One that is watched stays so, and one that does
// not exist is left out.
func (w *Watcher) Add(dir string) {
	err := w.add(dir)
	switch {
	case err == nil || errors.Is(err, fs.ErrNotExist):
		if len(w.missing) > 0 {
			delete(w.missing, dir)
			w.report(dir, nil)
		} else if w.hasLine() {
			w.line().Set(status.Running, "") // a watcher before this one was closed without notices
		}
	default:
		first := len(w.missing) == 0
		w.missing[dir] = err
		if first {
			w.report(dir, err)
		}
	}
}

func (w *Watcher) add(dir string) (err error) {
	if w.inner == nil {
		if w.inner, err = w.o.New(); err != nil {
			w.inner = nil
			return err
		}
	}
	return w.inner.Add(dir)
}

// line is the one on the board; nil takes reports, too.
func (w *Watcher) line() *status.Part {
	if w.o.Board == nil {
		return nil
	}
	return w.o.Board.Part(w.name())
}

func (w *Watcher) name() string { return "watch of " + w.o.What }

// hasLine says whether the board has the line: where notices were never missing it has none.
func (w *Watcher) hasLine() bool {
	return w.o.Board != nil && slices.ContainsFunc(w.o.Board.Components(), func(c status.Component) bool { return c.Name == w.name() })
}

// report begins and ends the time without notices.
func (w *Watcher) report(dir string, err error) {
	switch {
	case err != nil:
		w.ticker = time.NewTicker(Every)
		w.line().Set(status.Degraded, "changes are not noticed at once but within "+Every.String()+", for the kernel gives no notices: "+
			err.Error()+
			". All else works. Raise fs.inotify.max_user_instances and fs.inotify.max_user_watches (sysctl)")
		w.o.Logger.Warn("changes of "+w.o.What+" are not noticed at once but within "+Every.String(), "folder", dir, "error", err)
	case len(w.missing) == 0:
		w.ticker.Stop()
		w.ticker = nil
		w.line().Set(status.Running, "")
		w.o.Logger.Info("changes of " + w.o.What + " are noticed at once again")
	}
}

// Events are the kernel's notices; nil while it gives none at all.
func (w *Watcher) Events() <-chan fsnotify.Event {
	if w.inner == nil {
		return nil
	}
	return w.inner.Events
}

// Errors say that notices were lost; nil while the kernel gives none at all.
func (w *Watcher) Errors() <-chan error {
	if w.inner == nil {
		return nil
	}
	return w.inner.Errors
}

// Poll says every Every, while notices are missing, that the caller has to read the files, and to Add the folders
// again. It is nil while none are missing.
func (w *Watcher) Poll() <-chan time.Time {
	if w.ticker == nil {
		return nil
	}
	return w.ticker.C
}

// Close ends the watch.
func (w *Watcher) Close() {
	if w.ticker != nil {
		w.ticker.Stop()
	}
	if w.hasLine() {
		w.line().Set(status.Stopped, "")
	}
	if w.inner != nil {
		_ = w.inner.Close() // nothing depends on it any more
	}
}
