// SPDX-License-Identifier: Apache-2.0

package atomicfile_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestWriteReplacesAndSetsMode(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, content := range []string{"one", "two"} {
		testenv.NoError(t, atomicfile.Write(path, []byte(content), 0o600))
		got, err := os.ReadFile(path)
		testenv.Require(t, err == nil && string(got) == content, "read %q, %v; want %q", got, err, content)
	}
	fi, err := os.Stat(path)
	testenv.Require(t, err == nil && fi.Mode().Perm() == 0o600, "mode %v, %v", fi.Mode(), err)
	entries, err := os.ReadDir(dir)
	testenv.Require(t, err == nil && len(entries) == 1, "left behind: %v, %v", entries, err)
}

func TestFailedWriteKeepsTheOldFileAndNoRemains(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "d")
	testenv.NoError(t, os.MkdirAll(filepath.Join(path, "occupied"), 0o755))
	if err := atomicfile.Write(path, []byte("x"), 0o600); err == nil {
		t.Fatal("replaced a folder by a file")
	}
	entries, err := os.ReadDir(dir)
	testenv.Require(t, err == nil && len(entries) == 1, "left behind: %v, %v", entries, err)
}

func TestWriteIfDifferent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for i, step := range []struct {
		content string
		mode    os.FileMode
		want    bool
	}{{"a", 0o600, true}, {"a", 0o600, false}, {"a", 0o644, true}, {"b", 0o644, true}} {
		wrote, err := atomicfile.WriteIfDifferent(path, []byte(step.content), step.mode)
		testenv.Require(t, err == nil && wrote == step.want, "step %d: wrote %v, %v; want %v", i, wrote, err, step.want)
	}
}

// TestDamagedJSONFileIsAnError: a file that is not there is found by its own answer, and a damaged one is an error.
func TestDamagedJSONFileIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	var got []int
	if found, err := atomicfile.ReadJSON(path, &got); found || err != nil {
		t.Errorf("no file: %v, %v", found, err)
	}
	testenv.NoError(t, atomicfile.WriteJSON(path, []int{1, 2}, 0o600))
	if found, err := atomicfile.ReadJSON(path, &got); !found || err != nil || len(got) != 2 {
		t.Errorf("read %v, %v, %v", got, found, err)
	}
	testenv.NoError(t, atomicfile.Write(path, []byte("[1"), 0o600))
	if found, err := atomicfile.ReadJSON(path, &got); found || err == nil {
		t.Errorf("half a file: %v, %v", found, err)
	}
}
