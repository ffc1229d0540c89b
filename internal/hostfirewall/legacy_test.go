// SPDX-License-Identifier: Apache-2.0

package hostfirewall

import (
	"encoding/binary"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/nstest"
)

// TestFindLegacy: a policy of the older tables is seen, and nobody's tables are made by looking for them.
func TestFindLegacy(t *testing.T) {
	for _, f := range legacyFamilies {
		t.Run(f.name, func(t *testing.T) {
			nstest.Require(t)
			names, err := os.ReadFile(f.names)
			if err != nil {
				t.Skip("this kernel has no older tables:", err)
			}
			if got, err := f.closed(); len(got) > 0 || err != nil {
				t.Fatalf("an empty machine has %v, %v", got, err)
			}
			if again, err := os.ReadFile(f.names); string(again) != string(names) || err != nil {
				t.Fatalf("looking made the tables %q of %q, %v", again, names, err)
			}
			policies, entries, err := f.filter() // this makes the table
			if err != nil {
				t.Skip("this kernel has no older tables:", err)
			}
			if policies[Input] == dropVerdict || policies[Forward] == dropVerdict {
				t.Fatalf("a new table has the policies %v", policies)
			}
			f.close(t, Forward, entries)
			want := []string{"iptables-legacy forward: " + f.name + " filter FORWARD (legacy)"}
			if got, err := f.closed(); err != nil || !slices.Equal(texts(got), want) {
				t.Errorf("got %q, %v, want %q", texts(got), err, want)
			}
			if out := strings.Join(Commands([]Chain{{IPTablesLegacy, Forward, f.name, "filter", "FORWARD", true}}, Needs{}), ";"); out != "" {
				t.Errorf("nothing has to be let through, and it says %s", out)
			}
		})
	}
}

// close makes the policy of a chain of a new table, which has nothing but policies, drop: as iptables does, the table is replaced.
func (f legacyFamily) close(t *testing.T, hook Hook, entries []byte) {
	t.Helper()
	const (
		soSetReplace = 64 // IPT_SO_SET_REPLACE
		headLength   = nameLength + 3*4 + 2*5*4 + 4 + 8
	)
	fd, err := unix.Socket(f.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	info := make([]byte, infoLength)
	copy(info, "filter")
	if err := getsockopt(fd, f.level, soGetInfo, info); err != nil {
		t.Fatal(err)
	}
	count := binary.NativeEndian.Uint32(info[infoLength-8:])
	at := binary.NativeEndian.Uint32(info[nameLength+(6+legacyHooks[hook])*4:])
	verdict := at + uint32(binary.NativeEndian.Uint16(entries[at+uint32(f.targetOffsetAt):])) + verdictAt
	drop := int32(dropVerdict)
	binary.NativeEndian.PutUint32(entries[verdict:], uint32(drop))

	counters := make([]byte, 16*count)
	head := make([]byte, headLength)
	copy(head, "filter")
	copy(head[nameLength:], info[nameLength:nameLength+4])                                  // valid_hooks
	copy(head[nameLength+4:], info[infoLength-8:])                                          // num_entries, size
	copy(head[nameLength+12:], info[nameLength+4:nameLength+4+40])                          // hook_entry, underflow
	binary.NativeEndian.PutUint32(head[nameLength+52:], count)                              // num_counters
	*(*unsafe.Pointer)(unsafe.Pointer(&head[nameLength+56])) = unsafe.Pointer(&counters[0]) // counters
	if err := unix.SetsockoptString(fd, f.level, soSetReplace, string(append(head, entries...))); err != nil {
		t.Fatal(err)
	}
	runtime.KeepAlive(counters)
}
