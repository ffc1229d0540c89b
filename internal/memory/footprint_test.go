// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestCleanTakesOnlyWhatWasNeverWritten(t *testing.T) {
	const maps = `00400000-06d5a000 r-xp 00000000 fe:00 1234   /usr/local/bin/coracle
06d5a000-0a000000 r--p 0695a000 fe:00 1234   /usr/local/bin/coracle
0a000000-0a400000 rw-p 09c00000 fe:00 1234   /usr/local/bin/coracle
c000000000-c000400000 rw-p 00000000 00:00 0
7f0000000000-7f0000001000 r--s 00000000 fe:00 99   /var/lib/coracle/server/store/raft.db
7fff00000000-7fff00002000 r-xp 00000000 00:00 0   [vdso]
`
	got := testenv.Must(cleanMappings(strings.NewReader(maps), "/usr/local/bin/coracle"))(t)
	testenv.EqualSlices(t, got, []mapping{{0x400000, 0x6d5a000}, {0x6d5a000, 0xa000000}}, "clean mappings:")
}

// The program goes on after its pages were forgotten, read-only data included.
func TestProgramRunsAfterTrim(t *testing.T) {
	for i := range 3 {
		testenv.NoError(t, Trim(i > 0))
	}
	testenv.Equal(t, strings.Repeat("still here ", 2), "still here still here ", "")
}

// A byte that is read brings its page and not those around it: of every 64 KB one page is mapped, not sixteen.
func TestTrimMapsPagesSingly(t *testing.T) {
	resident := func() (kb int) {
		data := testenv.Must(os.ReadFile("/proc/self/status"))(t)
		_, rest, _ := strings.Cut(string(data), "RssFile:")
		testenv.Must(fmt.Sscan(rest, &kb))(t)
		return kb
	}
	touch := func() (touched int) {
		var sum byte
		testenv.NoError(t, eachOwn(func(m mapping) error {
			for at := m.start; at < m.end; at += 64 << 10 {
				sum += *(*byte)(unsafe.Add(unsafe.Pointer(nil), at))
				touched++
			}
			return nil
		}))
		_ = sum
		return touched
	}
	testenv.NoError(t, Trim(false))
	if open, err := os.ReadDir("/proc/self/fd"); err != nil || !slices.ContainsFunc(open, func(e os.DirEntry) bool {
		to, _ := os.Readlink("/proc/self/fd/" + e.Name())
		return strings.Contains(to, "userfaultfd")
	}) {
		t.Skip("this kernel does not track writes to files")
	}
	// A page cache with 2 MB of a file in one piece, of which a fault would map all, is not to be had at will.
	if _, err := os.Stat("/sys/kernel/mm/transparent_hugepage"); err == nil {
		smaps, err := os.ReadFile("/proc/self/smaps")
		testenv.NoError(t, err)
		own := 0
		for line := range strings.Lines(string(smaps)) {
			if strings.HasPrefix(line, "VmFlags:") && strings.Contains(line, " uw ") && strings.Contains(line, " nh ") {
				own++
			}
		}
		testenv.True(t, own >= 2, "%d mappings are tracked and decline huge pages, want text and read-only data:\n%s", own, smaps)
	}
	before := resident()
	touched := touch()
	if grown := resident() - before; grown > touched*3*os.Getpagesize()>>10 {
		t.Errorf("%d pages brought %d KB", touched, grown)
	}
}
