// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/filewatch"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestWaitWithoutNotices: without an inotify instance the folder is read again soon, and coracle status says so.
func TestWaitWithoutNotices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		board := status.NewBoard(time.Now)
		w := newWatcher(Options{Dir: t.TempDir(), Board: board, Logger: slog.New(slog.DiscardHandler), newNotices: func() (*fsnotify.Watcher, error) { return nil, unix.EMFILE }})
		defer w.close()
		for range 2 {
			began := time.Now()
			w.wait(t.Context(), resyncEvery)
			testenv.Equal(t, time.Since(began), filewatch.Every, "waited for")
		}
		if c := board.Components(); len(c) != 1 || c[0].State != status.Degraded {
			t.Errorf("the board says %+v", c)
		}
	})
}
