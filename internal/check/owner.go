// SPDX-License-Identifier: Apache-2.0

package check

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// OwnerOf names the process that listens on a port, "" when it cannot be found.
func OwnerOf(network string, port int) string {
	for _, table := range []string{"/proc/net/" + network, "/proc/net/" + network + "6"} {
		text, err := os.ReadFile(table)
		if err != nil {
			continue
		}
		for _, inode := range listeners(string(text), port) {
			if who := holderOf(inode); who != "" {
				return who
			}
		}
	}
	return ""
}

// listeners finds the inodes of sockets that listen on a port in the text of /proc/net/tcp and its like (proc(5)).
func listeners(text string, port int) []string {
	const listening, unconnected = "0A", "07" // TCP_LISTEN, and what UDP sockets without a peer show
	var out []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 10 || (f[3] != listening && f[3] != unconnected) {
			continue
		}
		_, hex, _ := strings.Cut(f[1], ":")
		if n, err := strconv.ParseInt(hex, 16, 32); err == nil && int(n) == port {
			out = append(out, f[9])
		}
	}
	return out
}

// holderOf finds the process that has a socket open.
func holderOf(inode string) string {
	want := "socket:[" + inode + "]"
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && target == want {
			pid := strings.Split(fd, "/")[2]
			name, err := os.ReadFile("/proc/" + pid + "/comm")
			if err != nil {
				return "process " + pid
			}
			return fmt.Sprintf("%s, process %s", strings.TrimSpace(string(name)), pid)
		}
	}
	return ""
}
