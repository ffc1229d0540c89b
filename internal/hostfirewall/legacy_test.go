// SPDX-License-Identifier: Apache-2.0

package hostfirewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/nstest"
)

// errNoLegacy says that this kernel has no tables of the older kind.
var errNoLegacy = errors.New("this kernel has no older tables")

// TestFindLegacy: a policy of the older tables is seen, and nobody's tables are made by looking for them.
func TestFindLegacy(t *testing.T) {
	for _, f := range legacyFamilies {
		t.Run(f.name, func(t *testing.T) {
			err := nstest.New(t).Do(f.tryFind)
			if errors.Is(err, errNoLegacy) {
				t.Skip(err) // many kernels of today have nftables only, and then there is nothing to find
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLegacyChains: a chain is there where it begins, not where its name stands otherwise; and no table is read beyond its end.
func TestLegacyChains(t *testing.T) {
	for _, f := range legacyFamilies {
		entry := func(match, target, data string) []byte {
			head := f.targetOffsetAt + 24 // target_offset, next_offset, comefrom, counters
			out := append(make([]byte, head), match...)
			out = append(out, make([]byte, 256-len(match))...)
			binary.NativeEndian.PutUint16(out[f.targetOffsetAt:], uint16(len(out)))
			body := make([]byte, 64)
			binary.NativeEndian.PutUint16(body, uint16(len(body)))
			copy(body[targetNameAt:], target)
			copy(body[chainNameAt:], data)
			out = append(out, body...)
			binary.NativeEndian.PutUint16(out[f.targetOffsetAt+2:], uint16(len(out)))
			return out
		}
		table := slices.Concat(entry("", "ERROR", "MY-DOCKER-USER"), entry("comment\x00ufw-user-input\x00", "", "DOCKER-USER"), entry("", "LOG", "DOCKER-USER"), entry("", "ERROR", "ERROR"))
		if got, want := f.chains(table), []string{"MY-DOCKER-USER", "ERROR"}; !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", f.name, got, want)
		}
		r := rand.New(rand.NewPCG(1, 2))
		for i := range table { // whatever the kernel said
			f.chains(table[:i])
			broken := slices.Clone(table)
			for range 3 {
				broken[r.IntN(len(broken))] = byte(r.Uint32())
			}
			binary.NativeEndian.PutUint16(broken[f.targetOffsetAt+2*r.IntN(2):], uint16(r.Uint32()))
			f.chains(broken)
		}
	}
}

// tryFind looks for closed chains in a network namespace of its own: with no table, with a new one, and with one whose forward chain drops.
func (f legacyFamily) tryFind() error {
	names, err := os.ReadFile(f.names)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoLegacy, err)
	}
	if got, err := f.closed(); len(got) > 0 || err != nil {
		return fmt.Errorf("an empty machine has %v, %v", got, err)
	}
	if again, err := os.ReadFile(f.names); string(again) != string(names) || err != nil {
		return fmt.Errorf("looking made the tables %q of %q, %v", again, names, err)
	}
	policies, entries, err := f.filter()                                 // this makes the table
	if errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.ENOENT) { // no ip_tables, no iptable_filter
		return fmt.Errorf("%w: %w", errNoLegacy, err)
	}
	if err != nil {
		return err
	}
	if policies[Input] == dropVerdict || policies[Forward] == dropVerdict {
		return fmt.Errorf("a new table has the policies %v", policies)
	}
	if err := f.close(Forward, entries); err != nil {
		return fmt.Errorf("closing the chain: %w", err)
	}
	want := []string{"iptables-legacy forward: " + f.name + " filter FORWARD (legacy)"}
	if got, err := f.closed(); err != nil || !slices.Equal(texts(got), want) {
		return fmt.Errorf("got %q, %v, want %q", texts(got), err, want)
	}
	if out := strings.Join(Commands([]Chain{{IPTablesLegacy, Forward, f.name, "filter", "FORWARD", true}}, Needs{}), ";"); out != "" {
		return fmt.Errorf("nothing has to be let through, and it says %s", out)
	}
	return nil
}

// close makes the policy of a chain of a new table, which has nothing but policies, drop: as iptables does, the table is replaced.
func (f legacyFamily) close(hook Hook, entries []byte) error {
	const (
		soSetReplace = 64 // IPT_SO_SET_REPLACE
		headLength   = nameLength + 3*4 + 2*5*4 + 4 + 8
	)
	fd, err := unix.Socket(f.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	info := make([]byte, infoLength)
	copy(info, "filter")
	if err := getsockopt(fd, f.level, soGetInfo, info); err != nil {
		return err
	}
	count := binary.NativeEndian.Uint32(info[infoLength-8:])
	at := binary.NativeEndian.Uint32(info[nameLength+(6+legacyHooks[hook])*4:])
	verdict := at + uint32(binary.NativeEndian.Uint16(entries[at+uint32(f.targetOffsetAt):])) + verdictAt
	drop := int32(dropVerdict)
	binary.NativeEndian.PutUint32(entries[verdict:], uint32(drop))

	// The kernel writes the old rules' counters here. It gets the address as a number: pinned, so that it stays where it is.
	counters := make([]byte, 16*count)
	var pins runtime.Pinner
	pins.Pin(&counters[0])
	defer pins.Unpin()
	head := make([]byte, headLength)
	copy(head, "filter")
	copy(head[nameLength:], info[nameLength:nameLength+4])                 // valid_hooks
	copy(head[nameLength+4:], info[infoLength-8:])                         // num_entries, size
	copy(head[nameLength+12:], info[nameLength+4:nameLength+4+40])         // hook_entry, underflow
	binary.NativeEndian.PutUint32(head[nameLength+52:], count)             // num_counters
	address := uint64(uintptr(unsafe.Pointer(&counters[0])))               // of counters
	binary.NativeEndian.PutUint64(head[nameLength+56:headLength], address) // as a machine of 64 bits has it
	return unix.SetsockoptString(fd, f.level, soSetReplace, string(append(head, entries...)))
}
