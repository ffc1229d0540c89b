// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/coracle-k8s/coracle/internal/testenv"
	"github.com/coracle-k8s/coracle/test/csi"
)

// TestSanity: csi-sanity, by which makers of drivers test theirs, finds nothing wrong.
func TestSanity(t *testing.T) {
	testenv.RequireRoot(t, "the driver mounts")
	dir := t.TempDir()
	for _, program := range []string{csi.Driver, csi.Sanity} {
		csi.Build(t, program, filepath.Join(dir, filepath.Base(program)))
	}
	// Mounts that are left go with the namespace. csi-sanity waits for the driver.
	const script = `cd "$1" || exit
./driver -node here -volumes "$1/volumes" -socket "$1/csi.sock" &
./csi-sanity -csi.endpoint "unix://$1/csi.sock" -csi.mountdir "$1/mount" -csi.stagingdir "$1/staging" -csi.testvolumesize 1048576 -ginkgo.no-color -ginkgo.v
code=$?
kill $! && wait $! && exit $code`
	out, err := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sanity", dir).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("| 0 Failed |")) {
		t.Errorf("csi-sanity: %v\n%s", err, out)
	}
	left, err := os.ReadDir(filepath.Join(dir, "volumes"))
	if err != nil || len(left) > 0 {
		t.Errorf("it leaves %v, %v", left, err)
	}
}
