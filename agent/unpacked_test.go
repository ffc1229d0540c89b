// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/agent/records"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestDamagedLayersAreSetAside damages what is unpacked, which the records call whole: without its pause program a node
// can run no pod at all.
func TestDamagedLayersAreSetAside(t *testing.T) {
	const layers = "root/io.containerd.snapshotter.v1.overlayfs/"
	n := newNode(t)
	n.start()
	for i, row := range []struct {
		what, files string // that are found by a pattern
		harm        func(file string) error
		why         string // "" where all is well
	}{
		{"nothing", layers, func(string) error { return nil }, ""},
		{"pause is empty", layers + "snapshots/*/fs/pause", func(f string) error { return os.Truncate(f, 0) }, "/fs/pause is not what was imported"},
		{"pause is gone", layers + "snapshots/*/fs/pause", os.Remove, "/fs/pause: no such file"},
		{"an image's folder is gone", layers + "snapshots/*/fs/chat", func(f string) error { return os.RemoveAll(filepath.Dir(filepath.Dir(f))) }, "has no folder"},
		{"the snapshotter's records are gone", layers + "metadata.db", os.Remove, "metadata.db"},
	} {
		t.Run(row.what, func(t *testing.T) {
			n.t = t
			n.pod()
			n.container("runs", "forever", "1000")
			n.signal(unix.SIGKILL)
			files := testenv.Must(filepath.Glob(filepath.Join(n.dir, row.files)))(t)
			testenv.Require(t, len(files) > 0, "there is no %s", row.files)
			testenv.NoError(t, row.harm(files[0]))
			testenv.NoError(t, os.WriteFile(filepath.Join(n.dir, "boot_id"), []byte{'0' + byte(i), '\n'}, 0o600))
			n.start()
			if row.why == "" {
				n.endPod()
				return
			}
			problems := records.Problems(runtimeOptions(n.dir).Root)
			testenv.True(t, len(problems) > 0 && strings.Contains(problems[len(problems)-1], row.why), "status: %q, want %s", problems, row.why)
		})
	}
	n.t = t
	n.pod()
	n.container("at last", "burst", "1", "0")
}
