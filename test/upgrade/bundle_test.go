//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"crypto/rand"
	"fmt"
	"strings"
	"testing"

	"aead.dev/minisign"

	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// trustKey makes a pair of keys, trusts the public one, and returns the file with the private one.
func (h *installed) trustKey(settings string) (private string) {
	h.t.Helper()
	public, key, err := minisign.GenerateKey(rand.Reader)
	testenv.NoError(h.t, err)
	h.place("/etc/coracle/trusted-keys", public.String()+"\n"+settings, 0o644)
	encrypted := testenv.Must(minisign.EncryptKey("", key))(h.t)
	h.place("/etc/coracle/site.key", string(encrypted), 0o600)
	return "/etc/coracle/site.key"
}

// bundle makes a bundle on the machine.
func (h *installed) bundle(name string, counter int, args ...string) string {
	h.t.Helper()
	file := fmt.Sprintf("/var/lib/coracle/%s-%d.bundle", name, counter)
	h.must("coracle", append([]string{"bundle", "make", "--out", file, "--name", name, "--counter", fmt.Sprint(counter)}, args...)...)
	return file
}

func (h *installed) refused(want string, args ...string) {
	h.t.Helper()
	before := h.state()
	out, err := h.Run("sh", "-c", "exec coracle "+strings.Join(args, " ")+" 2>&1")
	testenv.True(h.t, err != nil && strings.Contains(out, want), "%v: no %q in: %v\n%s", args, want, err, out)
	testenv.Equal(h.t, h.state(), before, "the versions are")
}

// TestUpgradeFromBundle takes a machine through bundles: those that may not be taken are refused before anything
// changes, and the others are committed with what they bring.
func TestUpgradeFromBundle(t *testing.T) {
	h := newInstalled(t, harness.NewMachine(t), "server")
	first := h.state().Current
	h.serves(first)
	key := h.trustKey("require-signed: true\n")
	sign := func(file string) string {
		h.must("sh", "-c", "echo | coracle bundle sign --key "+key+" "+file)
		return file
	}
	h.place("/var/lib/coracle/shop.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shop, namespace: default}\n", 0o644)
	next := h.candidate("next")
	nextDigest := testenv.Must(slots.Digest(next))(t)

	h.refused("is a program without a bundle, and this machine requires signatures", "upgrade", "--here", next)
	unsigned := h.bundle("spring", 7, "--program", next, "--manifest", "/var/lib/coracle/shop.yaml")
	h.refused("it is not signed", "upgrade", "--here", unsigned)
	signed := sign(unsigned)
	h.must("sh", "-c", "head -c -4096 "+signed+" >/var/lib/coracle/cut.bundle")
	h.refused("cut off", "upgrade", "--here", "/var/lib/coracle/cut.bundle")
	h.refused("it has no program", "upgrade", "--here", sign(h.bundle("files", 8, "--manifest", "/var/lib/coracle/shop.yaml")))
	// A byte of the program is changed: the signature is right, and the digest is not.
	h.must("sh", "-c", "cp "+signed+" /var/lib/coracle/changed.bundle && printf X | dd of=/var/lib/coracle/changed.bundle bs=1 seek=3000000 conv=notrunc 2>/dev/null")
	h.refused("does not have", "upgrade", "--here", "/var/lib/coracle/changed.bundle")

	out := h.must("coracle", "upgrade", "--here", signed)
	harness.Says(t, out, "is on trial", "is committed")
	testenv.Equal(t, h.state().Current, nextDigest, "the current version is")
	harness.Eventually(t, harness.Soon, "the manifest is applied", func() error {
		return harness.Succeeds(h.Run("coracle", "kubectl", "get", "configmap", "shop"))
	})

	h.refused("its counter is 6, and that of the newest was 7", "upgrade", "--here",
		sign(h.bundle("spring", 6, "--program", h.candidate("old"))))
	harness.Says(t, h.must("coracle", "upgrade", "undo"), "is committed")
	testenv.Equal(t, h.state().Current, first, "after undo, the current version is")
	h.refused("its counter is 6, and that of the newest was 7", "upgrade", "--here", "/var/lib/coracle/spring-6.bundle")
}
