// SPDX-License-Identifier: Apache-2.0

// This file determines how much memory a process may use before the kernel ends it: the machine's memory, or the least
// limit of the control groups of the process.
//
// It knows how to read the kernel's files, for versions 1 and 2 of control groups. It does not decide what follows from
// a limit, and never changes a limit.

package memory

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Limit is how much memory a process may use.
type Limit struct {
	// Bytes is the smaller one of Machine and Group. It is Machine if Group is 0.
	Bytes int64
	// Machine is the machine's memory in bytes.
	Machine int64
	// Group is the least limit, in bytes, of the process' control group and the groups above it. It is 0 if there is
	// none.
	Group int64
	// File is the file from which Group was read. It is empty if there is none.
	File string
}

// String describes the limit and its source for users.
func (l Limit) String() string {
	if l.Group > 0 && l.Group <= l.Machine {
		return fmt.Sprintf("%d MB, the limit of its control group (%s)", l.Bytes>>20, l.File)
	}
	return fmt.Sprintf("%d MB, the machine's memory", l.Bytes>>20)
}

// Self returns the limit of this process.
func Self() (Limit, error) { return Of(os.Getpid()) }

// Of returns the limit of a process.
func Of(pid int) (Limit, error) { return Read(os.DirFS("/"), strconv.Itoa(pid)) }

// Read returns the limit of a process from the files below root: those of proc and of the mounted control groups.
// process is its name in /proc. Only the machine's memory has to exist: without control groups there is no further
// limit.
func Read(root fs.FS, process string) (Limit, error) {
	machine, err := machineMemory(root)
	if err != nil {
		return Limit{}, err
	}
	l := Limit{Bytes: machine, Machine: machine}
	l.Group, l.File = groupLimit(root, process)
	if l.Group > 0 && l.Group < machine {
		l.Bytes = l.Group
	}
	return l, nil
}

// machineMemory reads MemTotal (proc_meminfo(5)).
func machineMemory(root fs.FS) (int64, error) {
	text, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("reading the machine's memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		rest, ok := strings.CutPrefix(line, "MemTotal:")
		if f := strings.Fields(rest); ok && len(f) == 2 && f[1] == "kB" {
			if kb, err := strconv.ParseInt(f[0], 10, 64); err == nil && kb > 0 {
				return kb << 10, nil
			}
		}
	}
	return 0, errors.New("reading the machine's memory: /proc/meminfo has no MemTotal")
}

// hierarchy is a mounted tree of control groups that can limit memory.
type hierarchy struct {
	version int
	top     string // the group that is the root of the mount
	mount   string // the mount point, without the leading slash
}

// groupLimit returns the least limit of the process' control group and the groups above it, up to the root of the
// mount.
func groupLimit(root fs.FS, process string) (least int64, file string) {
	lower := func(n int64, from string) {
		if n > 0 && (least == 0 || n < least) {
			least, file = n, "/"+from
		}
	}
	for _, h := range hierarchies(root, process) {
		group, ok := groupOf(root, process, h.version)
		if !ok {
			continue
		}
		for dir := h.dir(group); ; dir = path.Dir(dir) {
			if h.version == 2 {
				// Above memory.high the kernel slows the process down until it gives memory back.
				for _, name := range []string{"memory.max", "memory.high"} {
					lower(readBytes(root, path.Join(dir, name)), path.Join(dir, name))
				}
			} else {
				lower(readBytes(root, path.Join(dir, "memory.limit_in_bytes")), path.Join(dir, "memory.limit_in_bytes"))
				lower(hierarchicalLimit(root, dir), path.Join(dir, "memory.stat"))
			}
			if dir == h.mount || !strings.HasPrefix(dir, h.mount) {
				break
			}
		}
	}
	return least, file
}

// dir returns the folder of a group. In a container, the root of the mount may be the container's own group. The
// group's name is then the one that it has outside of the container, or "/".
func (h hierarchy) dir(group string) string {
	inside, ok := strings.CutPrefix(group, strings.TrimSuffix(h.top, "/"))
	if !ok || inside != "" && inside[0] != '/' || strings.Contains(inside, "..") {
		return h.mount
	}
	return path.Join(h.mount, inside)
}

// hierarchies returns the mounted hierarchies (proc_pid_mountinfo(5)).
func hierarchies(root fs.FS, process string) []hierarchy {
	text, err := root.Open(path.Join("proc", process, "mountinfo"))
	if err != nil {
		return nil
	}
	defer text.Close()
	all, _ := mountinfo.GetMountsFromReader(text, nil)
	var out []hierarchy
	for _, m := range all {
		h := hierarchy{top: m.Root, mount: path.Clean(strings.TrimPrefix(m.Mountpoint, "/"))}
		switch {
		case m.FSType == "cgroup2":
			h.version = 2
		case m.FSType == "cgroup" && contains(m.VFSOptions, "memory"):
			h.version = 1
		default:
			continue
		}
		out = append(out, h)
	}
	return out
}

// groupOf returns the process' control group in the hierarchy of a version (cgroups(7), /proc/PID/cgroup).
func groupOf(root fs.FS, process string, version int) (string, bool) {
	text, err := fs.ReadFile(root, path.Join("proc", process, "cgroup"))
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		if version == 2 && f[0] == "0" && f[1] == "" || version == 1 && contains(f[1], "memory") {
			return f[2], true
		}
	}
	return "", false
}

func contains(list, word string) bool { return slices.Contains(strings.Split(list, ","), word) }

// hierarchicalLimit returns version 1's limit of a group and all groups above it, including those that are not mounted
// here.
func hierarchicalLimit(root fs.FS, dir string) int64 {
	text, err := fs.ReadFile(root, path.Join(dir, "memory.stat"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "hierarchical_memory_limit "); ok {
			return parseBytes(value)
		}
	}
	return 0
}

func readBytes(root fs.FS, file string) int64 {
	text, err := fs.ReadFile(root, file)
	if err != nil {
		return 0
	}
	return parseBytes(string(text))
}

// unlimited is the least value that means "no limit" in version 1: its "no limit" is the largest multiple of a page in
// an int64, or near it.
const unlimited = 1 << 60

// parseBytes returns the limit in bytes. It returns 0 for a text that means no limit, which is "max" in version 2.
func parseBytes(text string) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil || n >= unlimited {
		return 0
	}
	return n
}
