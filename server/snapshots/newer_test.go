// SPDX-License-Identifier: Apache-2.0

package snapshots_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"

	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/snapshots"
	"github.com/coracle-k8s/coracle/test/testca"
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
			testenv.NoError(t, testca.WriteOwn(filepath.Join(dir, "tls"), "server-ca", time.Now().AddDate(1, 0, 0)))
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

// TestRestoreKeepsRenewedAuthorities: a snapshot from before the authorities were renewed does not bring back
// certificates that end, and one from after it can be restored on a blank machine.
func TestRestoreKeepsRenewedAuthorities(t *testing.T) {
	m := snapshots.NewMachine(t)
	m.Put("a", "1")
	before := m.MustSave()
	renewed := snapshots.NewTarget(t)
	tls := filepath.Join(renewed.ServerDir, "tls")
	testenv.NoError(t, os.MkdirAll(tls, 0o700))
	for name, data := range m.Files {
		testenv.NoError(t, os.WriteFile(filepath.Join(renewed.ServerDir, name), data, 0o600))
	}
	open := func(dir string) *pki.PKI {
		return testenv.Must(pki.Open(pki.Options{Dir: dir, Established: true, Clock: clocktesting.NewFakeClock(time.Now().AddDate(2, 0, 0))}))(t)
	}
	root := open(tls).Root()
	testenv.Must(open(tls).RenewAuthorities())(t)
	want := testenv.Must(os.ReadFile(filepath.Join(tls, "server-ca.crt")))(t)
	testenv.True(t, string(want) != string(m.Files["tls/server-ca.crt"]), "it was not renewed")
	check := func(to snapshots.Target, what string, info snapshots.Info) {
		t.Helper()
		testenv.NoError(t, testenv.Err(snapshots.Restore(to, info.Location, m.Key)), what)
		got := testenv.Must(os.ReadFile(filepath.Join(to.ServerDir, "tls", "server-ca.crt")))(t)
		testenv.Equal(t, string(got), string(want), "%s: server-ca:", what)
		testenv.True(t, open(filepath.Join(to.ServerDir, "tls")).Root().Equal(root), "%s: the cluster has another name", what)
	}
	check(renewed, "a snapshot from before the renewal, where it was renewed", before)

	for name := range m.Files {
		m.Files[name] = testenv.Must(os.ReadFile(filepath.Join(renewed.ServerDir, name)))(t)
	}
	first := filepath.Join("tls", pki.FirstRootFile)
	m.Files[first] = testenv.Must(os.ReadFile(filepath.Join(renewed.ServerDir, first)))(t)
	blank := snapshots.NewTarget(t)
	blank.Optional = append(blank.Optional, first)
	check(blank, "a snapshot from after the renewal, on a blank machine", m.MustSave())
}
