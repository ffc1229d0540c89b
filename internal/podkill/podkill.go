// SPDX-License-Identifier: Apache-2.0

// Package podkill ends the processes of a node's pods without containerd, and unmounts what they had mounted.
//
// It recognizes what is coracle's by coracle's own records: shims by the program that they run or their folder,
// containers by the ids in containerd's state directory and the cgroups named after them, or by a root file system that
// is one of containerd's snapshots. It never goes by a process' name. It removes no files.
package podkill

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// hardEnd is how long to wait for processes to exit after SIGKILL. A process that writes to a slow disk finishes the
// write first.
const hardEnd = 30 * time.Second

// Node is where a node's containers have their records and programs.
type Node struct {
	Root   string // containerd's root directory
	State  string // containerd's state directory
	BinDir string // the programs of the shims
}

// snapshotPath is the beginning of the names of the folders in which containerd's root directory has its snapshots.
const snapshotPath = "/io.containerd.snapshotter.v1."

// process has the fields in /proc of a process of coracle's or of its pods.
type process struct {
	pid    int
	parent int
	shim   bool
}

// End sends SIGTERM to the first process of each container, waits for the grace time, and kills the remaining
// processes and the shims. progress gets a sentence when processes have to be killed.
func End(ctx context.Context, n Node, grace time.Duration, progress func(string)) error {
	ids := containerIDs(n.State)
	list := func() ([]process, error) { return processesOf("/proc", n, ids) }
	procs, err := list()
	if err != nil {
		return err
	}
	if len(procs) == 0 {
		return nil
	}
	shims := map[int]bool{}
	for _, p := range procs {
		shims[p.pid] = p.shim
	}
	for _, p := range procs {
		if shims[p.parent] && !p.shim { // a container's first process; it ends the container's others
			_ = unix.Kill(p.pid, unix.SIGTERM) // an error is fine: the process has exited
		}
	}
	if left, err := waitExited(ctx, grace, func() ([]process, error) { return containersOf(list) }); err == nil && left > 0 {
		progress(fmt.Sprintf("%d processes of pods are still there after %v: killing them", left, grace))
	}
	left, err := waitExited(ctx, hardEnd, func() ([]process, error) {
		procs, err := list()
		for _, p := range procs {
			_ = unix.Kill(p.pid, unix.SIGKILL)
		}
		return procs, err
	})
	if err == nil && left > 0 {
		err = fmt.Errorf("%d processes of pods cannot be ended; a hanging disk or network file system does that", left)
	}
	return err
}

// AwaitNone returns when no process of a container runs, and an error when one still does after the given time.
func AwaitNone(ctx context.Context, n Node, within time.Duration) error {
	return awaitNone(ctx, "/proc", n, within)
}

func awaitNone(ctx context.Context, proc string, n Node, within time.Duration) error {
	ids := containerIDs(n.State)
	list := func() ([]process, error) { return processesOf(proc, n, ids) }
	left, err := waitExited(ctx, within, func() ([]process, error) { return containersOf(list) })
	if err == nil && left > 0 {
		err = fmt.Errorf("%d processes of pods still run", left)
	}
	return err
}

func containersOf(list func() ([]process, error)) ([]process, error) {
	procs, err := list()
	var out []process
	for _, p := range procs {
		if !p.shim {
			out = append(out, p)
		}
	}
	return out, err
}

// waitExited calls list until it returns no processes, for at most the given time, and returns how many processes were
// left.
func waitExited(ctx context.Context, within time.Duration, list func() ([]process, error)) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		procs, err := list()
		if err != nil || len(procs) == 0 {
			return 0, err
		}
		if !timers.Sleep(ctx, 50*time.Millisecond) {
			return len(procs), nil
		}
	}
}

// containerIDs returns the ids of the containers that containerd's state in the run directory has.
func containerIDs(state string) map[string]bool {
	ids := map[string]bool{}
	dirs, _ := filepath.Glob(filepath.Join(state, "io.containerd.runtime.v2.task", "*", "*")) // the pattern is well-formed
	for _, d := range dirs {
		ids[filepath.Base(d)] = true
	}
	return ids
}

// processesOf returns the shims and the ingress proxy, which run programs in the folder of programs, and the processes
// in the cgroup of one of the containers, or in a snapshot. The last have a container that the state directory does not
// have any more.
func processesOf(proc string, n Node, ids map[string]bool) ([]process, error) {
	bin, root, own := n.BinDir, n.Root, filepath.Join(proc, "self", "mountinfo")
	if real, err := filepath.EvalSymlinks(bin); err == nil {
		bin = real // the path as the kernel writes it
	}
	if real, err := filepath.EvalSymlinks(root); err == nil {
		root = real
	}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		dir := filepath.Join(proc, e.Name())
		p := process{pid: pid, shim: isShim(dir, bin, n.State)}
		if !p.shim && !inContainer(filepath.Join(dir, "cgroup"), ids) && !inSnapshot(filepath.Join(dir, "mountinfo"), own, root) {
			continue
		}
		if p.parent = parentOf(filepath.Join(dir, "stat")); p.parent < 0 {
			continue // a zombie, which only its parent can remove, or the process has exited
		}
		out = append(out, p)
	}
	return out, nil
}

// isShim says whether a process is a shim or the ingress proxy. containerd starts a shim in its container's folder,
// also one of a runtime of the machine, which is another program.
func isShim(dir, bin, state string) bool {
	exe, err := os.Readlink(filepath.Join(dir, "exe"))
	if err != nil {
		return false
	}
	exe = strings.TrimSuffix(exe, " (deleted)")
	name := filepath.Base(exe)
	if cwd, err := os.Readlink(filepath.Join(dir, "cwd")); err == nil && strings.HasPrefix(name, "containerd-shim-") && state != "" &&
		strings.HasPrefix(cwd, filepath.Join(state, "io.containerd.runtime.v2.task")+"/") {
		return true
	}
	// the proxy is ended like a shim: after the containers, by SIGKILL
	return strings.HasPrefix(exe, bin+"/") && (name == "coracle-helper" || name == "coracle-ingress")
}

// inContainer says whether a segment of the process' cgroup path is the id of one of the containers.
func inContainer(file string, ids map[string]bool) bool {
	data, err := os.ReadFile(file)
	if err != nil || len(ids) == 0 {
		return false
	}
	for line := range strings.Lines(string(data)) {
		for part := range strings.SplitSeq(strings.TrimSpace(line), "/") {
			if ids[part] {
				return true
			}
		}
	}
	return false
}

// inSnapshot says whether a process' root file system is an overlay of containerd's snapshots below root. own is the
// mountinfo file of this process, which may run in a container of another node with the same paths.
func inSnapshot(file, own, root string) bool {
	line := rootMount(file)
	return len(line) > 4 && strings.Contains(strings.Join(line, " "), "="+root+snapshotPath) && line[2] != rootMount(own)[2]
}

// rootMount returns the fields of the mount of a process' root (proc(5)), of which the third is the device. They are
// empty texts for a process that has exited.
func rootMount(file string) []string {
	data, _ := os.ReadFile(file)
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(unescape.Replace(line)); len(f) > 4 && f[4] == "/" {
			return f
		}
	}
	return make([]string, 3)
}

// parentOf reads the parent's process id from /proc/PID/stat. It returns -1 for zombies and for processes that have
// exited.
func parentOf(file string) int {
	data, err := os.ReadFile(file)
	if err != nil {
		return -1
	}
	// The name in parentheses may hold any character, so fields are counted from its end: state, then the parent.
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(f) < 2 || f[0] == "Z" || f[0] == "X" {
		return -1
	}
	parent, err := strconv.Atoi(f[1])
	if err != nil {
		return -1
	}
	return parent
}
