// SPDX-License-Identifier: Apache-2.0

package snapshots_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/coracle-k8s/coracle/server/snapshots"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestRestoreKeepsNewerTokens: a token that was replaced after the snapshot admits no machine again where the server
// knows the new one.
func TestRestoreKeepsNewerTokens(t *testing.T) {
	m := snapshots.NewMachine(t)
	m.Put("a", "1")
	info := m.MustSave()
	write := func(dir, name, text string) {
		t.Helper()
		testenv.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700))
		testenv.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	for what, c := range map[string]struct {
		here func(dir string)
		kept bool
	}{
		"a blank machine": {func(string) {}, false},
		"never replaced": {func(dir string) {
			write(dir, "tls/server-ca.crt", string(m.Files["tls/server-ca.crt"]))
			write(dir, "token", "now")
		}, false},
		"replaced since": {func(dir string) {
			write(dir, "tls/server-ca.crt", string(m.Files["tls/server-ca.crt"]))
			write(dir, "token", "now")
			write(dir, "tokens-rotated", "3")
		}, true},
		"of another cluster": {func(dir string) {
			write(dir, "tls/server-ca.crt", "another")
			write(dir, "token", "now")
			write(dir, "tokens-rotated", "3")
		}, false},
	} {
		to := snapshots.NewTarget(t)
		to.Newer = []string{"token", "tokens-rotated"}
		c.here(to.ServerDir)
		r, err := snapshots.Restore(to, info.Location, m.Key)
		testenv.NoError(t, err, "%s", what)
		got, _ := os.ReadFile(filepath.Join(to.ServerDir, "token")) // the snapshot has none
		testenv.False(t, r.KeptNewer != c.kept || (string(got) == "now") != c.kept, "%s: kept %v, the token is %q", what, r.KeptNewer, got)
	}
}
