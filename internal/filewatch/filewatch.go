// SPDX-License-Identifier: Apache-2.0

// Package filewatch reports when files change. It uses the kernel's notifications (inotify). While these are missing,
// the caller has to read the files at the interval Every.
//
// The kernel gives each user a limited number of inotify instances (fs.inotify.max_user_instances, 128 on many
// machines). Pods' programs that run as root share them with this process. Reaching the limit must not make this
// process fail. While notifications are missing, a line on the board says so.
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

// Every is the interval at which files have to be read for which the kernel sends no notifications.
const Every = 15 * time.Second

// Options describe the watched files. Logger is required.
type Options struct {
	// What names the files in the log and on the board, as in "the host's resolvers".
	What string
	// Board may be nil. It has a line about these files after their notifications were missing for the first time.
	Board  *status.Board
	Logger *slog.Logger
	// New makes the watcher that receives the kernel's notifications; fsnotify's when nil.
	New func() (*fsnotify.Watcher, error)
}

// Watcher watches folders. Only one goroutine may use it.
type Watcher struct {
	o       Options
	inner   *fsnotify.Watcher
	missing map[string]error // folders without notifications
	ticker  *time.Ticker     // runs while there are such folders
}

// New makes a watcher that watches no folder yet.
func New(o Options) *Watcher {
	if o.New == nil {
		o.New = fsnotify.NewWatcher
	}
	return &Watcher{o: o, missing: map[string]error{}}
}

// Add watches a folder, or tries again to watch a folder without notifications. It has no effect for a folder that is
// watched already. It ignores a folder that does not exist.
func (w *Watcher) Add(dir string) {
	err := w.add(dir)
	switch {
	case err == nil || errors.Is(err, fs.ErrNotExist):
		if len(w.missing) > 0 {
			delete(w.missing, dir)
			w.report(dir, nil)
		} else if w.hasLine() {
			w.line().Set(status.Running, "") // an earlier watcher was closed while its notifications were missing
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

// line returns the line on the board. A nil line, as without a board, accepts reports, too.
func (w *Watcher) line() *status.Part { return w.o.Board.Part(w.name()) }

func (w *Watcher) name() string { return "watch of " + w.o.What }

// hasLine says whether the board has the line. It has none if notifications were never missing.
func (w *Watcher) hasLine() bool {
	return w.o.Board != nil && slices.ContainsFunc(w.o.Board.Components(), func(c status.Component) bool { return c.Name == w.name() })
}

// report reports that notifications are missing, or are not missing any more, on the board and in the log.
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

// Events returns the kernel's notifications. It returns nil when the kernel gives none at all.
func (w *Watcher) Events() <-chan fsnotify.Event {
	if w.inner == nil {
		return nil
	}
	return w.inner.Events
}

// Errors returns errors, which mean that notifications were lost. It returns nil when the kernel gives none at all.
func (w *Watcher) Errors() <-chan error {
	if w.inner == nil {
		return nil
	}
	return w.inner.Errors
}

// Poll returns a channel that receives at the interval Every while notifications are missing. The caller then has to
// read the files and call Add for the folders again. It returns nil while no notifications are missing.
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
		_ = w.inner.Close() // nothing uses it any more
	}
}
