// SPDX-License-Identifier: Apache-2.0

package status

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Memory is what a process occupies, in bytes (proc(5), /proc/PID/status).
type Memory struct {
	RSS       int64 `json:"rss"`       // all resident pages
	Anonymous int64 `json:"anonymous"` // those that only this process has and the kernel cannot drop
	File      int64 `json:"file"`      // those of files, the program's own text above all
	Swap      int64 `json:"swap,omitempty"`
	Limit     int64 `json:"limit,omitempty"` // of its control group, 0 for none
}

// ReadMemory reads a process' memory from /proc.
func ReadMemory(pid int) (Memory, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Memory{}, fmt.Errorf("reading the memory of process %d: %w", pid, err)
	}
	m := parseMemory(text)
	m.Limit = cgroupLimit(pid)
	return m, nil
}

func parseMemory(text []byte) Memory {
	var m Memory
	fields := map[string]*int64{"VmRSS": &m.RSS, "RssAnon": &m.Anonymous, "RssFile": &m.File, "VmSwap": &m.Swap}
	sc := bufio.NewScanner(bytes.NewReader(text))
	for sc.Scan() {
		key, rest, _ := strings.Cut(sc.Text(), ":")
		if p := fields[key]; p != nil {
			kb, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			*p = kb << 10
		}
	}
	return m
}

// cgroupLimit finds the least memory limit on the way from the process' control group to the root.
func cgroupLimit(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return 0
	}
	var limit int64
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		var root, file string
		switch {
		case parts[0] == "0" && parts[1] == "":
			root, file = "/sys/fs/cgroup", "memory.max"
		case parts[1] == "memory":
			root, file = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		for dir := parts[2]; ; dir = dir[:strings.LastIndexByte(dir, '/')] {
			if n := readLimit(root + dir + "/" + file); n > 0 && (limit == 0 || n < limit) {
				limit = n
			}
			if dir == "" || dir == "/" || !strings.Contains(dir, "/") {
				break
			}
		}
	}
	return limit
}

// noLimit is where cgroup v1's "no limit" begins: the largest multiple of a page in an int64, and anything near it.
const noLimit = 1 << 60

func readLimit(path string) int64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	if err != nil || n >= noLimit { // "max"
		return 0
	}
	return n
}

func cpuSeconds() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return seconds(u.Utime) + seconds(u.Stime)
}
