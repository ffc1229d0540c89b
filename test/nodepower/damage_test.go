//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodepower

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// damages are what a dying disk, or one that has not flushed what it said, leaves of a node's records. The scripts have
// containerd's root in $C, its snapshotter in $S, and the folders of the kubelet and of the CNI plugin in $K and $N.
var damages = []struct{ what, script string }{
	{"half a meta.db and the kubelet's checkpoints are empty", `f=$C/io.containerd.metadata.v1.bolt/meta.db
truncate -s $(($(stat -c %s $f)/2)) $f
for f in $K/*_state $K/device-plugins/*checkpoint; do [ ! -f $f ] || : > $f; done`},
	{"pause and the pods' programs are empty", `for f in $S/snapshots/*/fs/bin/busybox $S/snapshots/*/fs/pause; do : > $f; done`},
	{"pages of meta.db are zero", `dd if=/dev/zero of=$C/io.containerd.metadata.v1.bolt/meta.db bs=4096 seek=4 count=12 conv=notrunc`},
	{"meta.db is empty", `: > $C/io.containerd.metadata.v1.bolt/meta.db`},
	{"meta.db is gone", `rm $C/io.containerd.metadata.v1.bolt/meta.db`},
	{"pages of the snapshotter's metadata.db are zero", `dd if=/dev/zero of=$S/metadata.db bs=4096 seek=2 count=6 conv=notrunc`},
	{"the snapshotter's metadata.db is gone", `rm $S/metadata.db`},
	{"all content is gone", `rm $C/io.containerd.content.v1.content/blobs/sha256/*`},
	{"all unpacked layers are gone", `rm -r $S/snapshots/*`},
	{"the kubelet's checkpoints are half written", `for f in $K/*_state $K/device-plugins/*checkpoint; do [ ! -f $f ] || echo '{"a":' > $f; done`},
	{"CRI's files of containers are empty", `find $C/io.containerd.grpc.v1.cri -type f -exec truncate -s 0 {} +`},
	{"all files of the CNI plugin are empty", `find $N -type f -exec truncate -s 0 {} +`},
}

// TestDamagedNodeComesBack reboots a node with damaged records: its pods have to run again by themselves, those with
// images from archives and those with pulled ones.
func TestDamagedNodeComesBack(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	rows := damages
	if os.Getenv(cutsVar) == "" {
		rows = rows[:1]
	}
	n.booted = time.Now()
	n.Start()
	n.ready(n.deploy(false))
	n.ready(n.deploy(true))
	for _, row := range rows {
		t.Logf("%s", row.what)
		n.PowerOff()
		c := exec.Command("sh", "-euc", row.script)
		c.Env = append(os.Environ(), "C="+n.Seen("agent/containerd"), "S="+n.Seen("agent/containerd/io.containerd.snapshotter.v1.overlayfs"),
			"K="+n.Seen("agent/kubelet"), "N="+n.Seen("agent/cni"))
		out, err := c.CombinedOutput()
		testenv.NoError(t, err, "%s", out)
		n.PowerOn()
		n.booted = time.Now()
		n.Start()
		n.checkWell()
	}
}
