// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"slices"
	"strings"
	"testing"
)

func TestCleanTakesOnlyWhatWasNeverWritten(t *testing.T) {
	const maps = `00400000-06d5a000 r-xp 00000000 fe:00 1234   /usr/local/bin/coracle
06d5a000-0a000000 r--p 0695a000 fe:00 1234   /usr/local/bin/coracle
0a000000-0a400000 rw-p 09c00000 fe:00 1234   /usr/local/bin/coracle
c000000000-c000400000 rw-p 00000000 00:00 0
7f0000000000-7f0000001000 r--s 00000000 fe:00 99   /var/lib/coracle/server/store/raft.db
7fff00000000-7fff00002000 r-xp 00000000 00:00 0   [vdso]
`
	got, err := clean(strings.NewReader(maps), "/usr/local/bin/coracle")
	if err != nil {
		t.Fatal(err)
	}
	if want := []mapping{{0x400000, 0x6d5a000}, {0x6d5a000, 0xa000000}}; !slices.Equal(got, want) {
		t.Errorf("clean mappings %x, want %x", got, want)
	}
}

// The program goes on after its pages were forgotten, read-only data included.
func TestTrim(t *testing.T) {
	for i := range 3 {
		if err := Trim(i > 0); err != nil {
			t.Fatal(err)
		}
	}
	if s := strings.Repeat("still here ", 2); s != "still here still here " {
		t.Error(s)
	}
}
