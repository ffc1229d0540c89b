// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/coracle-k8s/coracle/test/csi"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestDriverPassesCSISanity: csi-sanity, by which makers of drivers test theirs, finds nothing wrong.
func TestDriverPassesCSISanity(t *testing.T) {
	testenv.RequireRoot(t, "the driver mounts")
	programs := t.TempDir()
	for _, program := range []string{csi.Driver, csi.Sanity} {
		csi.Build(t, program, filepath.Join(programs, filepath.Base(program)))
	}
	// Mounts that are left go with the namespace. csi-sanity waits for the driver.
	const script = `cd "$1" || exit
"$2/driver" -node here -volumes "$1/volumes" -socket "$1/csi.sock" $3 &
"$2/csi-sanity" -csi.endpoint "unix://$1/csi.sock" -csi.mountdir "$1/mount" -csi.stagingdir "$1/staging" -csi.testvolumesize 1048576 -ginkgo.no-color -ginkgo.v
code=$?
kill $! && wait $! && exit $code`
	for _, flag := range []string{"", "-shared"} {
		t.Run("driver"+flag, func(t *testing.T) {
			dir := t.TempDir()
			out, err := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sanity", dir, programs, flag).CombinedOutput()
			testenv.False(t, err != nil || !bytes.Contains(out, []byte("| 0 Failed |")), "csi-sanity: %v\n%s", err, out)
			left, err := filepath.Glob(filepath.Join(dir, "volumes", "[^.]*"))
			testenv.False(t, err != nil || len(left) > 0, "it leaves %v, %v", left, err)
		})
	}
}
