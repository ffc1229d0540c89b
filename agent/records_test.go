// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/agent/records"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const page = 4096 // of the records; bbolt's is the kernel's

// freePages returns the page of a bbolt file that lists its free pages.
func freePages(t *testing.T, file []byte) []byte {
	t.Helper()
	le, newest := binary.LittleEndian, file[16:]
	if second := file[page+16:]; le.Uint64(second[48:]) > le.Uint64(newest[48:]) {
		newest = second
	}
	list := le.Uint64(newest[32:])
	testenv.Require(t, list < uint64(len(file)/page), "containerd's records have no list of free pages any more")
	return file[list*page:][:page]
}

// TestDamagedRecordsAreSetAside damages containerd's records as a dying disk does, or one that loses what it has
// acknowledged. Without setting them aside, bbolt's panic ends the process at this and each later start. Containers
// that still run without records are ended.
func TestDamagedRecordsAreSetAside(t *testing.T) {
	const metaDB, layersDB = "root/io.containerd.metadata.v1.bolt/meta.db", "root/io.containerd.snapshotter.v1.overlayfs/metadata.db"
	le := binary.LittleEndian
	rows := []struct {
		what, file string
		harm       func(t *testing.T, file []byte) []byte // nil removes the file
		why        string                                 // "" where the records are intact
	}{
		{"nothing", metaDB, func(_ *testing.T, f []byte) []byte { return f }, ""},
		{"cut to half", metaDB, func(_ *testing.T, f []byte) []byte { return f[:len(f)/2] }, "meta.db: it is"},
		{"twelve pages zero", metaDB, func(_ *testing.T, f []byte) []byte { clear(f[2*page:][:12*page]); return f }, "meta.db: page "},
		{"all zero", metaDB, func(_ *testing.T, f []byte) []byte { clear(f); return f }, "meta.db: header page 0"},
		{"empty", metaDB, func(_ *testing.T, f []byte) []byte { return f[:0] }, "meta.db: it is empty or gone"},
		{"gone", metaDB, nil, "meta.db: it is empty or gone"},
		{"snapshotter: no list of free pages", layersDB, func(t *testing.T, f []byte) []byte { clear(freePages(t, f)); return f }, "metadata.db: page "},
		{"snapshotter: too many free pages", layersDB, func(t *testing.T, f []byte) []byte { le.PutUint16(freePages(t, f)[10:], 5000); return f }, "5000 free pages"},
		{"snapshotter: a free page that does not exist", layersDB, func(t *testing.T, f []byte) []byte {
			le.PutUint16(freePages(t, f)[10:], 1)
			le.PutUint64(freePages(t, f)[16:], 1<<40)
			return f
		}, "which does not exist"},
		{"snapshotter: pages zero", layersDB, func(_ *testing.T, f []byte) []byte { clear(f[2*page:][:4*page]); return f }, "metadata.db: page "},
		{"snapshotter: cut to half", layersDB, func(_ *testing.T, f []byte) []byte { return f[:len(f)/2] }, "metadata.db: it is"},
		{"mounts: garbage", "state/io.containerd.mount-manager.v1.bolt/mounts.db", func(_ *testing.T, f []byte) []byte { return f[:100] },
			"mounts.db: it is 100 bytes long"},
	}
	n := newNode(t)
	n.start()
	for i, row := range rows {
		t.Run(row.what, func(t *testing.T) {
			n.t = t
			n.pod()
			_, pid := n.container("runs", "forever", "1000")
			n.signal(unix.SIGKILL)
			path := filepath.Join(n.dir, row.file)
			if row.harm == nil {
				testenv.NoError(t, os.Remove(path))
			} else {
				testenv.NoError(t, os.WriteFile(path, row.harm(t, testenv.Must(os.ReadFile(path))(t)), 0o600))
			}
			testenv.NoError(t, os.WriteFile(filepath.Join(n.dir, "boot_id"), fmt.Appendln(nil, i), 0o600))
			before := len(mountsBelow(n.dir))
			n.start()
			if row.why == "" {
				testenv.NoError(t, unix.Kill(pid, 0), "a container with records has ended")
				n.endPod()
				return
			}
			testenv.Equal(t, unix.Kill(pid, 0), error(unix.ESRCH), "the process of a container without records")
			problems := records.Problems(runtimeOptions(n.dir).Root)
			testenv.True(t, len(problems) > 0 && strings.Contains(problems[len(problems)-1], row.why), "status: %q, want %s", problems, row.why)
			testenv.True(t, before > 0 && len(mountsBelow(n.dir)) == 0, "mounts of containers without records: %v", mountsBelow(n.dir))
		})
	}
	n.t = t
	n.pod()
	n.container("at last", "burst", "1", "0")
}
