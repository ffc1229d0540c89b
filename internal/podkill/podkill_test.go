// SPDX-License-Identifier: Apache-2.0

package podkill

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	testenv.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	testenv.NoError(t, os.WriteFile(path, []byte(text), 0o644))
}

// fakeProcess adds a process to a made-up /proc.
func fakeProcess(t *testing.T, proc, pid, exe, stat, cgroup, mountinfo string) {
	t.Helper()
	dir := filepath.Join(proc, pid)
	write(t, filepath.Join(dir, "stat"), pid+" "+stat)
	write(t, filepath.Join(dir, "cgroup"), cgroup)
	write(t, filepath.Join(dir, "mountinfo"), mountinfo)
	testenv.NoError(t, os.Symlink(exe, filepath.Join(dir, "exe")))
}

func TestProcessesOfThisBinary(t *testing.T) {
	proc, bin, root := t.TempDir(), t.TempDir(), t.TempDir()
	helper := bin + "/0123/coracle-helper"
	host := "20 1 8:1 / / rw - ext4 /dev/root rw\n"
	snapshot := func(device, root string) string { // where a container's root file system is
		return "30 20 " + device + " / / rw - overlay overlay rw,lowerdir=" + root + "/l,upperdir=" + root + "/io.containerd.snapshotter.v1.overlayfs/snapshots/3/fs\n"
	}
	write(t, filepath.Join(proc, "self", "mountinfo"), snapshot("0:50", root)) // this process is in a node's container
	fakeProcess(t, proc, "10", helper, "(containerd-shim) S 1", "0::/system.slice/coracle.service\n", host)
	fakeProcess(t, proc, "11", helper+" (deleted)", "(containerd-shim) S 1", "0::/\n", host)
	fakeProcess(t, proc, "12", "/pause", "(pause) S 10", "4:memory:/kubepods/podx/abc\n0::/\n", snapshot("0:60", root))
	fakeProcess(t, proc, "13", "/bin/odd", "(a) b) S 12", "0::/kubepods/podx/abc/inner\n", "")
	fakeProcess(t, proc, "14", "/bin/other", "(other) S 1", "0::/kubepods/pody/def\n", snapshot("0:61", "/other"+root))
	fakeProcess(t, proc, "15", bin+"/0123/coracle-tools", "(kubectl) S 1", "0::/user.slice\n", host)
	fakeProcess(t, proc, "16", "/pause", "(pause) Z 10", "0::/kubepods/podx/abc\n", host)
	fakeProcess(t, proc, "17", "/usr/bin/coracle-helper", "(coracle-helper) S 1", "0::/\n", host)
	fakeProcess(t, proc, "18", "/bin/orphan", "(orphan) S 1", "0::/\n", snapshot("0:62", root)) // its shim and its bundle are gone
	fakeProcess(t, proc, "20", "/usr/bin/containerd-shim-runsc-v1", "(containerd-shim) S 1", "0::/\n", host)
	testenv.NoError(t, os.Symlink("/state/io.containerd.runtime.v2.task/k8s.io/abc", filepath.Join(proc, "20", "cwd")))
	fakeProcess(t, proc, "19", "/bin/beside", "(beside) S 1", "0::/\n", snapshot("0:50", root)) // in this process' container
	got := testenv.Must(processesOf(proc, Node{Root: root, State: "/state", BinDir: bin}, map[string]bool{"abc": true}))(t)
	slices.SortFunc(got, func(a, b process) int { return a.pid - b.pid })
	want := []process{{10, 1, true}, {11, 1, true}, {12, 10, false}, {13, 12, false}, {18, 1, false}, {20, 1, true}}
	testenv.EqualSlices(t, got, want, "")
}

func TestMountsBelowFolderAreFound(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "mountinfo")
	write(t, file, `20 1 0:1 / / rw - ext4 /dev/root rw
21 20 0:2 / `+dir+` rw - ext4 /dev/sdb rw
22 21 0:3 / `+dir+`/a\040b rw - tmpfs tmpfs rw
23 21 0:4 / `+dir+`-not rw - tmpfs tmpfs rw
24 22 0:5 / `+dir+`/a\040b/c rw - tmpfs tmpfs rw
`)
	got := testenv.Must(mountsBelow(file, dir))(t)
	testenv.EqualSlices(t, got, []string{dir + "/a b", dir + "/a b/c"}, "")
}

// TestAwaitNone: a container that the runtime does not know any more is found by its cgroup; its shim may live on.
func TestAwaitNone(t *testing.T) {
	proc, state := t.TempDir(), t.TempDir()
	n := Node{Root: t.TempDir(), State: state, BinDir: "/bin/of/coracle"}
	testenv.NoError(t, os.MkdirAll(filepath.Join(state, "io.containerd.runtime.v2.task", "k8s.io", "lost"), 0o755))
	write(t, filepath.Join(proc, "self", "mountinfo"), "20 1 8:1 / / rw - ext4 /dev/root rw\n")
	fakeProcess(t, proc, "10", "/bin/of/coracle/0123/coracle-helper", "(coracle-helper) S 1", "0::/\n", "20 1 8:1 / / rw - ext4 /dev/root rw\n")
	testenv.NoError(t, awaitNone(t.Context(), proc, n, time.Millisecond))
	fakeProcess(t, proc, "11", "/bin/program", "(program) S 10", "0::/kubepods/pod1/lost\n", "20 1 8:1 / / rw - ext4 /dev/root rw\n")
	testenv.WantError(t, awaitNone(t.Context(), proc, n, time.Millisecond), "1 processes of pods still run")
}
