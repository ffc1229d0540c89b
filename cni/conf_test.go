// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
)

// TestConflistIsSeen: containerd reloads on a write, a rename or a removal in the folder, never on a file's appearance:
// a configuration that is only moved into place would never be seen, and the node never be ready.
func TestConflistIsSeen(t *testing.T) {
	s := &Server{o: Options{Socket: "/run/x/cni.sock", StateDir: t.TempDir(), ConfDir: t.TempDir()}}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Add(s.o.ConfDir); err != nil {
		t.Fatal(err)
	}
	if err := s.writeConflist(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.o.ConfDir, conflistName)
	for {
		select {
		case e := <-w.Events:
			if e.Name != path {
				t.Errorf("containerd sees %s: it would try to load it", e.Name)
			}
			if e.Has(fsnotify.Write) {
				return
			}
		case <-time.After(2 * time.Minute):
			t.Fatal("no write was seen")
		}
	}
}

// TestConflistIsClosed: the file of an earlier version, too.
func TestConflistIsClosed(t *testing.T) {
	s := &Server{o: Options{Socket: "/run/x/cni.sock", StateDir: t.TempDir(), ConfDir: t.TempDir()}}
	path := filepath.Join(s.o.ConfDir, conflistName)
	for range 2 {
		if err := s.writeConflist(); err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", fi.Mode(), err)
		}
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
