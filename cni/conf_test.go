// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestContainerdNoticesWrittenConflist: containerd reloads on a write, a rename or a removal in the folder, never on a
// file's appearance: a configuration that is only moved into place would never be seen, and the node never be ready.
func TestContainerdNoticesWrittenConflist(t *testing.T) {
	s := &podNetwork{o: Options{Socket: "/run/x/cni.sock", StateDir: t.TempDir(), ConfDir: t.TempDir()}}
	w := testenv.Must(fsnotify.NewWatcher())(t)
	defer w.Close()
	testenv.NoError(t, w.Add(s.o.ConfDir))
	testenv.NoError(t, s.writeConflist())
	path := filepath.Join(s.o.ConfDir, conflistName)
	for {
		select {
		case e := <-w.Events:
			testenv.True(t, e.Name == path, "containerd sees %s: it would try to load it", e.Name)
			if e.Has(fsnotify.Write) {
				return
			}
		case <-time.After(2 * time.Minute):
			t.Fatal("no write was seen")
		}
	}
}

// TestConflistIsReadableByRootAlone: also the file of an earlier version.
func TestConflistIsReadableByRootAlone(t *testing.T) {
	s := &podNetwork{o: Options{Socket: "/run/x/cni.sock", StateDir: t.TempDir(), ConfDir: t.TempDir()}}
	path := filepath.Join(s.o.ConfDir, conflistName)
	for range 2 {
		testenv.NoError(t, s.writeConflist())
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", fi.Mode(), err)
		}
		testenv.NoError(t, os.Chmod(path, 0o644))
	}
}
