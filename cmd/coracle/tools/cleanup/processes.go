// SPDX-License-Identifier: Apache-2.0

package cleanup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
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

// process is what /proc says of a process of coracle's or of its pods.
type process struct {
	pid    int
	parent int
	shim   bool
}

// refuseWhileRunning returns an error when a running coracle holds the lock on its pid file.
func refuseWhileRunning(pidFile string) error {
	f, err := os.Open(pidFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("see whether coracle runs: %w", err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		pid, _ := os.ReadFile(pidFile)
		return fmt.Errorf("coracle is running as process %s; nothing was removed. Stop it first, then run this again", bytes.TrimSpace(pid))
	}
	return nil
}

// endPods sends SIGTERM to the first process of each container, waits for the grace time, and kills the remaining
// processes and the shims.
func endPods(ctx context.Context, o Options) error {
	ids := containerIDs(o.Paths.ContainerdState)
	list := func() ([]process, error) { return processesOf("/proc", o.Paths.BinDir, ids) }
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
	if left, err := waitExited(ctx, o.Grace, func() ([]process, error) { return containersOf(list) }); err == nil && left > 0 {
		fmt.Fprintf(o.Progress, "%d processes of pods are still there after %v: killing them\n", left, o.Grace)
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

// processesOf returns the shims and the ingress proxy, which run programs in the folder bin, and the processes in the
// cgroup of one of the containers.
func processesOf(proc, bin string, ids map[string]bool) ([]process, error) {
	if real, err := filepath.EvalSymlinks(bin); err == nil {
		bin = real // the path as the kernel writes it
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
		p := process{pid: pid, shim: isShim(filepath.Join(proc, e.Name()), bin)}
		if !p.shim && !inContainer(filepath.Join(proc, e.Name(), "cgroup"), ids) {
			continue
		}
		if p.parent = parentOf(filepath.Join(proc, e.Name(), "stat")); p.parent < 0 {
			continue // a zombie, which only its parent can remove, or the process has exited
		}
		out = append(out, p)
	}
	return out, nil
}

func isShim(dir, bin string) bool {
	exe, err := os.Readlink(filepath.Join(dir, "exe"))
	if err != nil {
		return false
	}
	exe = strings.TrimSuffix(exe, " (deleted)")
	name := filepath.Base(exe)
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
