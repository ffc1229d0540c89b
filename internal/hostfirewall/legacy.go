// SPDX-License-Identifier: Apache-2.0

package hostfirewall

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The older interface of iptables, which nftables does not show: two questions by getsockopt (include/uapi/linux/netfilter_ipv4/ip_tables.h, and ip6_tables.h,
// where the numbers are the same).
const (
	soGetInfo    = 64 // IPT_SO_GET_INFO
	soGetEntries = 65 // IPT_SO_GET_ENTRIES
	nameLength   = 32 // XT_TABLE_MAXNAMELEN
	infoLength   = nameLength + 13*4
	// entriesAt is where a table's entries begin in the answer to the second question.
	entriesAt = 40
	// verdictAt is where a standard target has its verdict (struct xt_standard_target).
	verdictAt = 32
	// dropVerdict is how NF_DROP is written there: -NF_DROP - 1.
	dropVerdict = -1
	// A chain of somebody's own begins with an entry whose target is called chainTarget and has the chain's name (struct xt_error_target).
	chainTarget   = "ERROR"
	targetNameAt  = 2
	targetNameEnd = 31
	chainNameAt   = 32
	chainNameEnd  = 62
)

// legacyHooks are the kernel's numbers of hooks (enum nf_inet_hooks).
var legacyHooks = map[Hook]int{Input: 1, Forward: 2}

// legacyFamily is one of the two.
type legacyFamily struct {
	name   string
	names  string // the file that lists the tables that are in use
	domain int
	level  int
	// targetOffsetAt is where an entry says how far its target is from its beginning (struct ipt_entry, struct ip6t_entry).
	targetOffsetAt int
}

var legacyFamilies = []legacyFamily{
	{"ip", "/proc/thread-self/net/ip_tables_names", unix.AF_INET, unix.SOL_IP, 88},
	{"ip6", "/proc/thread-self/net/ip6_tables_names", unix.AF_INET6, unix.SOL_IPV6, 140},
}

// findLegacy lists the closed chains of the table filter. It does not ask for a table that nobody uses: the kernel would make it.
func findLegacy() ([]Chain, error) {
	var out []Chain
	for _, f := range legacyFamilies {
		closed, err := f.closed()
		if err != nil {
			return nil, fmt.Errorf("reading the rules of iptables' older kind: %w", err)
		}
		out = append(out, closed...)
	}
	return out, nil
}

func (f legacyFamily) closed() ([]Chain, error) {
	tables, err := os.ReadFile(f.names)
	if err != nil || !slices.Contains(strings.Fields(string(tables)), "filter") {
		return nil, nil // most kernels of today have none
	}
	policies, entries, err := f.filter()
	if err != nil {
		return nil, err
	}
	var out []Chain
	names := f.chains(entries)
	has := func(chain string) bool { return slices.Contains(names, chain) }
	for _, hook := range []Hook{Input, Forward} {
		if policies[hook] == dropVerdict {
			out = append(out, Chain{Program: owner(has, hook, IPTablesLegacy), Hook: hook, Family: f.name, Table: "filter", Name: strings.ToUpper(string(hook)), Legacy: true})
		}
	}
	return out, nil
}

// filter reads the table of that name: the verdict of each chain's policy, and the rules as the kernel has them.
func (f legacyFamily) filter() (policies map[Hook]int32, entries []byte, err error) {
	fd, err := unix.Socket(f.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	info := make([]byte, infoLength)
	copy(info, "filter")
	if err := getsockopt(fd, f.level, soGetInfo, info); err != nil {
		return nil, nil, err
	}
	size := binary.NativeEndian.Uint32(info[infoLength-4:])
	answer := make([]byte, entriesAt+int(size))
	copy(answer, "filter")
	binary.NativeEndian.PutUint32(answer[nameLength:], size)
	if err := getsockopt(fd, f.level, soGetEntries, answer); err != nil {
		return nil, nil, err // EAGAIN where somebody has changed the table meanwhile: the next look sees it
	}
	entries = answer[entriesAt:]
	policies = map[Hook]int32{}
	for hook, number := range legacyHooks {
		underflow := int(binary.NativeEndian.Uint32(info[nameLength+(1+5+number)*4:])) // after valid_hooks and hook_entry[5]
		if underflow+f.targetOffsetAt+2 > len(entries) {
			return nil, nil, fmt.Errorf("the kernel's answer has %d bytes, and a chain's end is at %d", len(entries), underflow)
		}
		verdict := underflow + int(binary.NativeEndian.Uint16(entries[underflow+f.targetOffsetAt:])) + verdictAt
		if verdict+4 > len(entries) {
			return nil, nil, fmt.Errorf("the kernel's answer has %d bytes, and a verdict is at %d", len(entries), verdict)
		}
		policies[hook] = int32(binary.NativeEndian.Uint32(entries[verdict:]))
	}
	return policies, entries, nil
}

// chains are the names of the table's chains beside its own three. A comment may hold the name of one that is not there.
func (f legacyFamily) chains(entries []byte) []string {
	var out []string
	text := func(b []byte) string {
		s, _, _ := bytes.Cut(b, []byte{0})
		return string(s)
	}
	for len(entries) >= f.targetOffsetAt+4 {
		target := int(binary.NativeEndian.Uint16(entries[f.targetOffsetAt:]))
		next := int(binary.NativeEndian.Uint16(entries[f.targetOffsetAt+2:]))
		if next == 0 || next > len(entries) {
			break
		}
		if t := entries[min(target, next):next]; len(t) >= chainNameEnd && text(t[targetNameAt:targetNameEnd]) == chainTarget {
			out = append(out, text(t[chainNameAt:chainNameEnd]))
		}
		entries = entries[next:]
	}
	return out
}

// getsockopt is the call as it is: x/sys/unix has it for answers of fixed shapes only.
func getsockopt(fd, level, option int, value []byte) error {
	length := uint32(len(value))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&value[0])), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
