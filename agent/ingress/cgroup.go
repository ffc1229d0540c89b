// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/coracle-k8s/coracle/internal/convert"
)

const (
	// cgroupRoot is where control groups are mounted, and cgroupName is our folder in each hierarchy. Each proxy has
	// its own folder in it, so that a draining proxy does not use the memory of the serving one.
	cgroupRoot, cgroupName = "/sys/fs/cgroup", "coracle-ingress"
	// defaultMemory limits a proxy's memory, in bytes, and defaultConnections the connections of its clients. Above
	// fifteen sixteenths of the memory the kernel throttles the proxy and reclaims memory. From three quarters on, the
	// proxy's garbage collector works hard.
	defaultMemory, defaultConnections = 256 << 20, 4000
	// weightV2 and weightV1 are the processor weight of all proxies when the processors are busy. Other groups have 100
	// and 1,024. So requests of foreign clients slow down, and the store's leader does not.
	weightV2, weightV1 = "20", "204"
	// maxThreads limits the proxy's threads.
	maxThreads = 512
)

// groups makes and removes the control groups of the ingress proxies. They limit memory, threads and processors.
type groups struct {
	root   string // where control groups are mounted
	memory int64  // of each proxy, in bytes
}

// goLimit returns GOMEMLIMIT for a proxy, in bytes: three quarters of its group's limit.
func (g groups) goLimit() int64 { return g.memory / 4 * 3 }

// hierarchy is a mounted hierarchy with the limits that are set in it.
type hierarchy struct {
	dir    string
	limits [][2]string // file and value
	// optional means that the last limit may be unavailable. The limit of swap is, where the kernel does not count
	// swap.
	optional bool
	// weight is the file and value of the processor weight, for the folder of all proxies. It may be unavailable.
	weight [2]string
}

// hierarchies returns those that limit memory, threads and processors: one of cgroup v2, or three of v1.
func (g groups) hierarchies() []hierarchy {
	limit, high, threads := strconv.FormatInt(g.memory, 10), strconv.FormatInt(g.memory/16*15, 10), strconv.Itoa(maxThreads)
	if exists(filepath.Join(g.root, "cgroup.controllers")) {
		return []hierarchy{{
			dir:      g.root,
			limits:   [][2]string{{"pids.max", threads}, {"memory.high", high}, {"memory.max", limit}, {"memory.swap.max", "0"}},
			optional: true,
			weight:   [2]string{"cpu.weight", weightV2},
		}}
	}
	memory := [][2]string{{"memory.limit_in_bytes", limit}, {"memory.memsw.limit_in_bytes", limit}}
	out := []hierarchy{
		{dir: filepath.Join(g.root, "memory"), limits: memory, optional: true},
		{dir: filepath.Join(g.root, "pids"), limits: [][2]string{{"pids.max", threads}}},
	}
	if cpu := filepath.Join(g.root, "cpu"); exists(cpu) {
		out = append(out, hierarchy{dir: cpu, weight: [2]string{"cpu.shares", weightV1}})
	}
	return out
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// addProcess makes the group of a process and moves the process there.
func (g groups) addProcess(name string, pid int) error {
	return errors.Join(convert.Slice(g.hierarchies(), func(h hierarchy) error { return h.addProcess(name, pid) })...)
}

func (h hierarchy) addProcess(name string, pid int) error {
	if _, err := os.Stat(filepath.Join(h.dir, "cgroup.procs")); err != nil {
		return fmt.Errorf("finding control groups: %w", err)
	}
	ours := filepath.Join(h.dir, cgroupName)
	dir := filepath.Join(ours, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making the proxy's control group: %w", err)
	}
	for _, above := range []string{h.dir, ours} { // v2 has the file; mostly the controllers are enabled already
		file := filepath.Join(above, "cgroup.subtree_control")
		have, err := os.ReadFile(file)
		for _, controller := range []string{"memory", "pids", "cpu"} {
			if err == nil && !slices.Contains(strings.Fields(string(have)), controller) {
				_ = os.WriteFile(file, []byte("+"+controller), 0o644) // on failure the limits' files are missing, which is reported
			}
		}
	}
	if file, value := h.weight[0], h.weight[1]; file != "" {
		_ = setLimit(filepath.Join(ours, file), value)
	}
	for i, limit := range h.limits {
		if err := setLimit(filepath.Join(dir, limit[0]), limit[1]); err != nil && !(h.optional && i == len(h.limits)-1) {
			return fmt.Errorf("limiting the proxy: %w", err)
		}
	}
	if err := setLimit(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
		return fmt.Errorf("moving the proxy to its control group: %w", err)
	}
	return nil
}

// setLimit writes an existing file of the kernel's.
func setLimit(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// wasKilled reports whether the kernel has killed a process of the group for lack of memory.
func (g groups) wasKilled(name string) bool {
	for _, h := range g.hierarchies() {
		for _, file := range []string{"memory.events", "memory.oom_control"} {
			text, err := os.ReadFile(filepath.Join(h.dir, cgroupName, name, file))
			if err != nil {
				continue
			}
			for line := range strings.Lines(string(text)) {
				if f := strings.Fields(line); len(f) == 2 && f[0] == "oom_kill" && f[1] != "0" {
					return true
				}
			}
		}
	}
	return false
}

// sweep removes the groups whose processes have ended. The kernel refuses to remove the others.
func (g groups) sweep() {
	for _, h := range g.hierarchies() {
		ours := filepath.Join(h.dir, cgroupName)
		inside, _ := os.ReadDir(ours) // no such folder, no groups
		for _, e := range inside {
			if e.IsDir() {
				_ = os.Remove(filepath.Join(ours, e.Name()))
			}
		}
		_ = os.Remove(ours)
	}
}
