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

	"github.com/coracle-k8s/coracle/internal/memory"
)

// Memory is the memory of a process, in bytes (proc(5), /proc/PID/status).
type Memory struct {
	RSS       int64 `json:"rss"`       // all resident pages
	Anonymous int64 `json:"anonymous"` // pages that only this process has and that the kernel cannot drop
	File      int64 `json:"file"`      // pages of files, mostly of the program's own file
	Swap      int64 `json:"swap,omitempty"`
	Limit     int64 `json:"limit,omitempty"` // limit of its control group, 0 for none
}

// ReadMemory reads a process' memory from /proc.
func ReadMemory(pid int) (Memory, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Memory{}, fmt.Errorf("reading the memory of process %d: %w", pid, err)
	}
	m := parseMemory(text)
	if limit, err := memory.Of(pid); err == nil {
		m.Limit = limit.Group
	}
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

func cpuSeconds() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return seconds(u.Utime) + seconds(u.Stime)
}
