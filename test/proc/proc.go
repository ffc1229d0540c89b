// SPDX-License-Identifier: Apache-2.0

// Package proc reads the kernel's figures of processes, for benchmarks.
package proc

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Field returns the number behind a key, which includes the colon, in a file of lines; 0 if there is none.
func Field(file, key string) int64 {
	b, err := os.ReadFile(file)
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

// StatusMB returns a field of a process' status, such as VmRSS: in megabytes of 1024 KB.
func StatusMB(pid int, key string) float64 {
	return float64(Field(fmt.Sprintf("/proc/%d/status", pid), key)) / 1024
}

// Written returns the bytes that a process has given to file systems.
func Written(pid int) int64 { return Field(fmt.Sprintf("/proc/%d/io", pid), "write_bytes:") }
