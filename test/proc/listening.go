// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Listening returns the TCP sockets at which a process listens, by their inodes. A socket that several processes have
// is in the answers for all of them. It reads /proc/PID/fd and /proc/PID/net.
func Listening(pid int) (map[string]netip.AddrPort, error) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	entries, err := os.ReadDir(dir + "fd")
	if err != nil {
		return nil, err
	}
	own := map[string]bool{}
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, "fd", e.Name())); err == nil { // it may be closed meanwhile
			if inode, isSocket := strings.CutPrefix(to, "socket:["); isSocket {
				own[strings.TrimSuffix(inode, "]")] = true
			}
		}
	}
	out := map[string]netip.AddrPort{}
	for _, table := range []string{"net/tcp", "net/tcp6"} {
		text, err := os.ReadFile(dir + table)
		if errors.Is(err, os.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != "0A" || !own[f[9]] {
				continue
			}
			if out[f[9]], err = address(f[1]); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// address parses an address of /proc/net/tcp: words of 32 bits in the machine's order, which is little-endian, and a
// port.
func address(text string) (netip.AddrPort, error) {
	ip, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(ip)
	number, err2 := strconv.ParseUint(port, 16, 16)
	if err := errors.Join(err, err2); err != nil {
		return netip.AddrPort{}, fmt.Errorf("the address %q: %w", text, err)
	}
	for word := range slices.Chunk(raw, 4) {
		binary.BigEndian.PutUint32(word, binary.LittleEndian.Uint32(word))
	}
	a, ok := netip.AddrFromSlice(raw)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("the address %q has %d bytes", text, len(raw))
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(number)), nil
}
