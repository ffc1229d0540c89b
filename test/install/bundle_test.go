//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package install

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"aead.dev/minisign"

	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestInstallFromBundle takes a bare machine from one file to a running pod of an image in it. A bundle that another
// key has signed installs nothing.
func TestInstallFromBundle(t *testing.T) {
	h := newHost(t)
	before := h.state()
	public, private, err := minisign.GenerateKey(nil)
	testenv.NoError(t, err)
	other, _, err := minisign.GenerateKey(nil)
	testenv.NoError(t, err)
	image, manifest, file := filepath.Join(h.Dir, "box.tar"), filepath.Join(h.Dir, "web.yaml"), filepath.Join(h.release, "spring.bundle")
	harness.WriteBoxImage(t, image)
	h.write(manifest, strings.Replace(workload, "metadata: {name: web}", "metadata: {name: web, namespace: default}", 1))
	h.must(filepath.Join(h.release, "coracle-linux-"+runtime.GOARCH), "bundle", "make", "--out", file, "--name", "spring", "--counter", "7",
		"--program", filepath.Join(h.release, "coracle-linux-"+runtime.GOARCH), "--image", image, "--manifest", manifest)
	_, err = bundle.Sign(t.Context(), file, private)
	testenv.NoError(t, err)
	testenv.NoError(t, os.Remove(filepath.Join(h.release, "sha256sums.txt")))

	out, err := h.install([]string{"INSTALL_CORACLE_BUNDLE=" + file, "INSTALL_CORACLE_BUNDLE_KEY=" + other.String()})
	testenv.Fails(t, err, "a bundle of another key was installed")
	testenv.Contains(t, out, "Nothing was installed", "the installer says")
	h.awaitState(before)

	h.must("mkdir", "-p", "/var/lib/precious") // which the pod mounts
	out = h.mustInstall([]string{"INSTALL_CORACLE_BUNDLE=" + file, "INSTALL_CORACLE_BUNDLE_KEY=" + public.String()}, "--node-name", "board-1")
	testenv.Contains(t, out, "The bundle spring, counter 7, is imported", "the installer says")
	h.awaitAnswer()
	testenv.Contains(t, h.must("cat", "/etc/coracle/trusted-keys"), public.String(), "the key is kept")
	if out := h.mustInstall([]string{"INSTALL_CORACLE_BUNDLE=" + file}); !strings.Contains(out, "nothing has changed") {
		t.Errorf("the second run does not say that it changes nothing:\n%s", out)
	}
	t.Log(h.must("coracle-uninstall"))
}
