// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// dieWithUs makes a child process end when this one does, however that happens.
func dieWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// usage is what /proc says of a process.
type usage struct {
	rss, anon float64 // MB
	written   int64   // bytes it gave to the filesystem
}

func usageOf(pid int) usage {
	return usage{
		rss:     float64(procField(pid, "status", "VmRSS:")) / 1024,
		anon:    float64(procField(pid, "status", "RssAnon:")) / 1024,
		written: procField(pid, "io", "write_bytes:"),
	}
}

func procField(pid int, file, key string) int64 {
	return fileField(fmt.Sprintf("/proc/%d/%s", pid, file), key)
}

func fileField(path, key string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}

func memorySize() string {
	return fmt.Sprintf("%.0f GB", float64(fileField("/proc/meminfo", "MemTotal:"))/1e6)
}

// burn keeps one processor busy.
func burn(d time.Duration) {
	x := 1.0
	for end := time.Now().Add(d); time.Now().Before(end); {
		for i := range 1_000_000 {
			x += math.Sqrt(float64(i))
		}
	}
	fmt.Println(x) // or the compiler might leave it out
}
