//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package install

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// newRelease replaces the release by one with other bytes. Without a script it is the same program otherwise. A script
// gets the path of that program as $program.
func (h *host) newRelease(script string) {
	h.t.Helper()
	name := "coracle-linux-" + runtime.GOARCH
	binary := filepath.Join(h.release, name)
	if script == "" {
		f := testenv.Must(os.OpenFile(binary, os.O_WRONLY|os.O_APPEND, 0))(h.t)
		testenv.NoError(h.t, testenv.Err(f.WriteString("\nanother version")))
		testenv.NoError(h.t, f.Close())
	} else {
		text := "#!/bin/sh\nprogram=" + h.Coracle() + "\n" + script + "\nexec $program \"$@\"\n"
		testenv.NoError(h.t, os.WriteFile(binary, []byte(text), 0o755))
	}
	h.write(filepath.Join(h.release, "sha256sums.txt"), hash(h.t, binary)+"  "+name+"\n")
}

// TestUpgradeOnTrial: install.sh of a new release tries it, and ends as the trial does. A version that ends at once
// leaves the one before running.
func TestUpgradeOnTrial(t *testing.T) {
	h := newHost(t)
	before := h.state()
	h.mustInstall([]string{"CORACLE_TRIAL_SOAK=5s"}, "--node-name", "board-1", "--disable", "ingress,gateway,console,helm-controller")
	first := h.must("readlink", "/var/lib/coracle/versions/current")
	testenv.Equal(t, first, hash(t, h.Coracle()), "the current version is")
	testenv.Equal(t, h.must("readlink", "/proc/"+h.pid()+"/exe"), "/var/lib/coracle/versions/"+first+"/coracle", "what runs:")

	h.newRelease(`[ "$1" != server ] || exit 7`)
	out, err := h.install(nil)
	t.Log(out)
	testenv.True(t, err != nil && strings.Contains(out, "3 starts without a commit"), "a version that ends at once: %v", err)
	testenv.Equal(t, h.must("readlink", "/proc/"+h.pid()+"/exe"), "/var/lib/coracle/versions/"+first+"/coracle", "what runs:")
	testenv.Equal(t, h.must("readlink", "/var/lib/coracle/versions/current"), first, "current:")
	h.kubectl("get", "nodes")

	h.copy(h.Coracle(), filepath.Join(h.release, "coracle-linux-"+runtime.GOARCH), 0o755)
	h.newRelease("")
	out = h.mustInstall(nil)
	testenv.Contains(t, out, "is committed", "")
	second := h.must("readlink", "/var/lib/coracle/versions/current")
	testenv.Equal(t, h.must("readlink", "/var/lib/coracle/versions/previous"), first, "previous:")
	testenv.Equal(t, h.must("readlink", "/proc/"+h.pid()+"/exe"), "/var/lib/coracle/versions/"+second+"/coracle", "what runs:")
	testenv.Equal(t, h.must("sh", "-c", "ls /var/lib/coracle/versions | wc -l"), "7", "entries: two versions, two links, tries, lock, restart")
	testenv.Equal(t, h.must("cat", "/usr/local/bin/"+slots.StarterName), strings.TrimSpace(slots.Starter), "the starter:")
	testenv.Contains(t, h.mustInstall(nil), "nothing has changed", "once more:")

	t.Log(h.must("coracle-uninstall"))
	h.awaitState(before)
}
