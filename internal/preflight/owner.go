// SPDX-License-Identifier: Apache-2.0

package preflight

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// OwnerOf returns the name of the process that listens on a port. It returns "" when the process cannot be found.
func OwnerOf(network string, port int) string {
	for _, table := range []string{"/proc/net/" + network, "/proc/net/" + network + "6"} {
		text, err := os.ReadFile(table)
		if err != nil {
			continue
		}
		for _, inode := range listeningSockets(string(text), port) {
			if who := holderOf(inode); who != "" {
				return who
			}
		}
	}
	return ""
}

// Listeners returns those of some TCP ports at which a program listens, at all addresses of this machine or at one of
// the given ones. The values are the names of the processes, and "" for a process that cannot be found.
func Listeners(ports []int, at []netip.Addr) (map[int]string, error) {
	out := map[int]string{}
	for i, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(table)
		if i == 1 && errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("looking for programs that listen: %w", err)
		}
		for _, port := range ports {
			if _, found := out[port]; !found && listensAt(string(text), port, at) {
				out[port] = OwnerOf("tcp", port)
			}
		}
	}
	return out, nil
}

// Programs formats the result of Listeners: "TCP 80 (nginx, process 12) and TCP 443".
func Programs(found map[int]string) string {
	var out []string
	for _, port := range slices.Sorted(maps.Keys(found)) {
		text := "TCP " + strconv.Itoa(port)
		if found[port] != "" {
			text += " (" + found[port] + ")"
		}
		out = append(out, text)
	}
	return strings.Join(out, " and ")
}

func listensAt(text string, port int, at []netip.Addr) bool {
	const listening = "0A"
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 10 || f[3] != listening {
			continue
		}
		address, number, _ := strings.Cut(f[1], ":")
		if n, err := strconv.ParseInt(number, 16, 32); err != nil || int(n) != port {
			continue
		}
		if a, ok := procAddress(address); ok && (a.IsUnspecified() || slices.Contains(at, a)) {
			return true
		}
	}
	return false
}

// procAddress parses an address in the form of proc(5): words of 32 bits, each in this machine's byte order.
func procAddress(text string) (netip.Addr, bool) {
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw)%4 != 0 {
		return netip.Addr{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	a, ok := netip.AddrFromSlice(raw)
	return a.Unmap(), ok
}

// listeningSockets returns the inodes of sockets that listen on a port, from the text of /proc/net/tcp and similar
// files (proc(5)).
func listeningSockets(text string, port int) []string {
	const listening, unconnected = "0A", "07" // TCP_LISTEN, and the state of UDP sockets without a peer
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

// holderOf returns the name of the process that has a socket open.
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
