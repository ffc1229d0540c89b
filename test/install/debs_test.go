// SPDX-License-Identifier: Apache-2.0

package install

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestLockOfDebianPackages: another version than the lock's is taken with a warning, since a distribution publishes
// updates; the same version with other content is refused, and so is any difference in a release.
func TestLockOfDebianPackages(t *testing.T) {
	dir := t.TempDir()
	lock, have := filepath.Join(dir, "lock"), filepath.Join(dir, "have")
	testenv.NoError(t, os.WriteFile(lock, []byte("bookworm amd64 libc6 2.36-9 aa\nbookworm amd64 nftables 1.0.6-2 bb\n"), 0o600))
	for _, c := range []struct {
		name, have, want string
		release, refused bool
	}{
		{name: "as in the lock", have: "bookworm amd64 libc6 2.36-9 aa\nbookworm amd64 nftables 1.0.6-2 bb\n"},
		{name: "an update", have: "bookworm amd64 libc6 2.36-9 aa\nbookworm amd64 nftables 1.0.6-2+deb12u1 cc\n", want: "nftables=1.0.6-2+deb12u1"},
		{name: "a new dependency", have: "bookworm amd64 libfoo 1 cc\nbookworm amd64 nftables 1.0.6-2 bb\n", want: "libfoo=1"},
		{name: "another distribution", have: "trixie amd64 libc6 2.41 cc\n", want: "no packages of trixie"},
		{name: "an update in a release", have: "bookworm amd64 libc6 2.36-10 cc\n", want: "libc6=2.36-10", release: true, refused: true},
		{name: "another distribution's release", have: "trixie amd64 libc6 2.41 cc\n", want: "no packages of trixie", release: true, refused: true},
		{name: "a release", have: "bookworm amd64 libc6 2.36-9 aa\n", release: true},
		{name: "other content", have: "bookworm amd64 libc6 2.36-9 cc\n", want: "has the SHA-256 cc", refused: true},
	} {
		testenv.NoError(t, os.WriteFile(have, []byte(c.have), 0o600))
		cmd := exec.CommandContext(t.Context(), "../../packaging/debs.sh", "--compare", have)
		cmd.Env = append(os.Environ(), "DEBS_LOCK="+lock)
		if c.release {
			cmd.Env = append(cmd.Env, "TRIMPATH=1")
		}
		out, err := cmd.CombinedOutput()
		testenv.False(t, (err != nil) != c.refused || !strings.Contains(string(out), c.want) || c.want == "" && len(out) > 0,
			"%s: %v: %s", c.name, err, out)
	}
}
