// SPDX-License-Identifier: Apache-2.0

package runtimes

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestRuntimesAreThoseOfTheCluster: the leader makes RuntimeClasses of the names that nodes find.
func TestRuntimesAreThoseOfTheCluster(t *testing.T) {
	testenv.EqualSlices(t, slices.Sorted(maps.Keys(programs)), clusterconfig.Runtimes, "names with programs:")
}

// standIn writes a program that stands in for a runtime.
func standIn(t *testing.T, path, script string, mode os.FileMode) {
	t.Helper()
	testenv.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	testenv.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), mode))
}

func TestInstalledRuntimesAreFound(t *testing.T) {
	const runc = "io.containerd.runc.v2"
	for _, c := range []struct {
		what, files, want string
	}{
		{"none", "", ""},
		{"runc is embedded", "bin/runc", ""},
		{"crun", "bin/crun", "crun bin/crun " + runc},
		{"two nvidia runtimes", "bin/nvidia-container-runtime bin/nvidia-container-runtime.cdi",
			"nvidia bin/nvidia-container-runtime " + runc + "; nvidia-cdi bin/nvidia-container-runtime.cdi " + runc},
		{"a folder before PATH", "operator/crun bin/crun", "crun operator/crun " + runc},
		{"gVisor's shim without runsc", "bin/containerd-shim-runsc-v1", ""},
		{"gVisor", "bin/containerd-shim-runsc-v1 operator/runsc", "runsc bin/containerd-shim-runsc-v1 io.containerd.runsc.v1"},
		{"Kata", "bin/containerd-shim-kata-v2", "kata bin/containerd-shim-kata-v2 io.containerd.kata.v2"},
		{"the newer of two shims", "operator/containerd-shim-spin-v1 bin/containerd-shim-spin-v2",
			"spin bin/containerd-shim-spin-v2 io.containerd.spin.v2"},
		{"an older shim", "bin/containerd-shim-spin-v1", "spin bin/containerd-shim-spin-v1 io.containerd.spin.v1"},
		{"an unknown shim", "bin/containerd-shim-other-v1", ""},
	} {
		root := t.TempDir()
		for file := range strings.FieldsSeq(c.files) {
			standIn(t, filepath.Join(root, file), "", 0o755)
		}
		var got []string
		for _, r := range Find([]string{filepath.Join(root, "operator"), filepath.Join(root, "bin")}) {
			got = append(got, fmt.Sprint(r.Name, " ", strings.TrimPrefix(r.Program, root+"/"), " ", r.Type()))
		}
		testenv.Equal(t, strings.Join(got, "; "), c.want, "%s:", c.what)
	}
}

func TestOnlyProgramsAreRuntimes(t *testing.T) {
	dir := t.TempDir()
	standIn(t, filepath.Join(dir, "plain", "crun"), "", 0o644)
	testenv.NoError(t, os.MkdirAll(filepath.Join(dir, "folder", "crun"), 0o755))
	testenv.NoError(t, os.MkdirAll(filepath.Join(dir, "dangling"), 0o755))
	testenv.NoError(t, os.Symlink("nothing", filepath.Join(dir, "dangling", "crun")))
	dirs := []string{filepath.Join(dir, "missing"), filepath.Join(dir, "plain"), filepath.Join(dir, "folder"), filepath.Join(dir, "dangling")}
	testenv.Equal(t, len(Find(dirs)), 0, "runtimes:")
	standIn(t, filepath.Join(dir, "linked", "there"), "", 0o755)
	testenv.NoError(t, os.Symlink("there", filepath.Join(dir, "linked", "crun")))
	testenv.Equal(t, len(Find(append(dirs, filepath.Join(dir, "linked")))), 1, "runtimes with a link to a program:")
}

func TestRelativeFoldersAreNotSearched(t *testing.T) {
	testenv.EqualSlices(t, Dirs(".::bin:/usr/bin:/opt/kata/bin:/usr/bin"),
		[]string{"/usr/local/nvidia/toolkit", "/opt/kwasm/bin", "/opt/kata/bin", "/usr/bin"}, "folders:")
}

// TestStuckRuntimeIsLeftOut: containerd would wait for it for ever before it serves.
func TestStuckRuntimeIsLeftOut(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) Runtime { return Runtime{Name: name, Program: filepath.Join(dir, name)} }
	child := filepath.Join(dir, "child")
	standIn(t, filepath.Join(dir, "stuck"), "sleep 1000 & echo $! >"+child+"; wait", 0o755)
	standIn(t, filepath.Join(dir, "broken"), "", 0o755)
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, "broken"), []byte("\x7fELF of another machine"), 0o755))
	standIn(t, filepath.Join(dir, "old"), "echo unknown command $1 >&2; exit 1", 0o755)
	standIn(t, filepath.Join(dir, "well"), `[ "$1" = features ]`, 0o755)
	standIn(t, filepath.Join(dir, "shim"), `[ "$1" = -info ] || sleep 1000`, 0o755)

	shim := at("shim")
	shim.OwnShim = true
	usable, errs := Query(t.Context(), []Runtime{at("old"), at("broken"), at("well"), shim}, 2*time.Minute)
	testenv.EqualSlices(t, usable, []Runtime{at("old"), at("well"), shim}, "usable:")
	testenv.Require(t, len(errs) == 1, "errors: %v", errs)
	testenv.WantError(t, errs[0], "broken", "cannot be run", "exec format error")

	usable, errs = Query(t.Context(), []Runtime{at("stuck")}, 500*time.Millisecond)
	testenv.Require(t, len(usable) == 0 && len(errs) == 1, "the stuck one is usable: %v, %v", usable, errs)
	testenv.WantError(t, errs[0], "stuck", filepath.Join(dir, "stuck"), "did not reply", "500ms")
	pid, err := os.ReadFile(child)
	if os.IsNotExist(err) { // it was killed before it had one
		return
	}
	testenv.NoError(t, err)
	testenv.Until(t, time.Minute, "its child process is killed, too", func() bool {
		state, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		return err != nil || strings.Contains(string(state), ") Z ")
	})
}
