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

	"github.com/coracle-k8s/coracle/internal/filewatch"
)

// watcher waits for changes in a folder and its subfolders.
type watcher struct {
	dir   string
	log   *slog.Logger
	files *filewatch.Watcher
}

func newWatcher(o Options) *watcher {
	w := &watcher{dir: o.Dir, log: o.Logger, files: filewatch.New(filewatch.Options{What: "the manifests' folder", Board: o.Board,
		Logger: o.Logger, New: o.newNotices})}
	w.watchAll()
	return w
}

func (w *watcher) close() { w.files.Close() }

// watchAll adds every folder. A folder that is watched already stays so.
func (w *watcher) watchAll() {
	err := filepath.WalkDir(w.dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && path != w.dir:
			return nil
		case err != nil:
			return err
		case entry.IsDir():
			w.files.Add(path)
		}
		return nil
	})
	if err != nil {
		w.log.Warn("a folder of manifests is not watched; changes there are noticed within "+resyncEvery.String(), "error", err)
	}
}

// wait returns after a change, when nothing has changed for the time settle since, or after limit, or when ctx is done.
func (w *watcher) wait(ctx context.Context, limit time.Duration) {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	var quiet <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-deadline.C:
			return
		case <-w.files.Poll():
			w.watchAll()
			return
		case <-quiet:
			w.watchAll()
			return
		case e := <-w.files.Events():
			if e.Op != fsnotify.Chmod { // reading the files may cause that
				quiet = time.After(settleDelay)
			}
		case err := <-w.files.Errors(): // notices were lost: read all
			w.log.Debug("the kernel's notices about the manifests' folder have a gap", "error", err)
			quiet = time.After(settleDelay)
		}
	}
}
