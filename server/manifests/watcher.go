// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// pollEvery stands in for the kernel's notices where there are none.
const pollEvery = 15 * time.Second

// watcher waits for changes in a folder and the folders in it.
type watcher struct {
	dir   string
	log   *slog.Logger
	inner *fsnotify.Watcher // nil: the kernel gives no notices
}

func newWatcher(dir string, log *slog.Logger) *watcher {
	w := &watcher{dir: dir, log: log}
	var err error
	if w.inner, err = fsnotify.NewWatcher(); err == nil {
		err = w.watchAll()
	}
	if err != nil {
		log.Warn("changes of the manifests' folder are not noticed at once but within "+pollEvery.String(), "folder", dir, "error", err)
		w.close()
	}
	return w
}

func (w *watcher) close() {
	if w.inner != nil {
		_ = w.inner.Close() // nothing depends on it any more
		w.inner = nil
	}
}

// watchAll adds every folder; one that is watched already stays so.
func (w *watcher) watchAll() error {
	return filepath.WalkDir(w.dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && path != w.dir:
			return nil
		case err != nil:
			return err
		case entry.IsDir():
			return w.inner.Add(path)
		}
		return nil
	})
}

// wait returns when something changed and has been quiet for a moment since, after limit, or when ctx is done.
func (w *watcher) wait(ctx context.Context, limit time.Duration) {
	var events chan fsnotify.Event
	var failures chan error
	if w.inner == nil {
		limit = min(limit, pollEvery)
	} else {
		events, failures = w.inner.Events, w.inner.Errors
	}
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	var quiet <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-deadline.C:
			return
		case <-quiet:
			if err := w.watchAll(); err != nil {
				w.log.Warn("a folder of manifests is not watched; changes there are noticed within "+resyncEvery.String(), "error", err)
			}
			return
		case e := <-events:
			if e.Op != fsnotify.Chmod { // reading the files may touch that
				quiet = time.After(settle)
			}
		case err := <-failures: // notices were lost: look
			w.log.Debug("the kernel's notices about the manifests' folder have a gap", "error", err)
			quiet = time.After(settle)
		}
	}
}
