// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestSharedFilesAreNotReplaced: of an answer those files are taken that all servers have, and nothing is replaced.
func TestSharedFilesAreNotReplaced(t *testing.T) {
	dir := t.TempDir()
	o := Folders{Server: dir, TLS: filepath.Join(dir, "tls"), Cred: filepath.Join(dir, "cred")}
	required, optional := CommonFiles()
	answer := func() map[string][]byte {
		files := map[string][]byte{}
		for _, name := range append(required, optional...) {
			files[name] = []byte(name)
		}
		return files
	}
	refused := func(files map[string][]byte, want string) {
		t.Helper()
		testenv.WantError(t, o.Write(files, AsideSuffix), want)
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left %v, %v", left, err)
		}
	}
	for _, name := range []string{"../evil", "tls/../../evil", "tls/admin.pem", "/etc/passwd", "store/log"} {
		files := answer()
		files[name] = []byte("x")
		refused(files, "unknown file")
	}
	for _, name := range required {
		files := answer()
		delete(files, name)
		refused(files, name)
	}
	for range 2 { // an interrupted join is repeated
		testenv.NoError(t, o.Write(answer(), AsideSuffix))
	}
	for name, content := range answer() {
		fi := testenv.Must(os.Stat(filepath.Join(dir, name)))(t)
		testenv.False(t, fi.Mode().Perm() != 0o600, "%s has the mode %v", name, fi.Mode())
		testenv.Equal(t, string(testenv.Must(os.ReadFile(filepath.Join(dir, name)))(t)), string(content), "%s:", name)
	}
	files := answer()
	files[required[0]] = []byte("of another cluster")
	testenv.WantError(t, o.Write(files, AsideSuffix), "is not the cluster's")
	testenv.Equal(t, string(testenv.Must(os.ReadFile(filepath.Join(dir, required[0])))(t)), required[0], "")
}

// TestFilesOfAnInterruptedJoin: what the cluster has replaced since is replaced here too, wherever the join was
// interrupted, and what was there is kept. Without the authorities nothing says that it is of the same cluster.
func TestFilesOfAnInterruptedJoin(t *testing.T) {
	required, optional := CommonFiles()
	answer := func(generation string) map[string][]byte {
		files := map[string][]byte{}
		for _, name := range append(required, optional...) {
			if files[name] = []byte(name); isReplaced(name) {
				files[name] = []byte(name + generation)
			}
		}
		return files
	}
	names := inOrder(answer(""))
	for cut := range len(names) + 1 {
		dir := t.TempDir()
		o := Folders{Server: dir, TLS: filepath.Join(dir, "tls"), Cred: filepath.Join(dir, "cred")}
		first, second := answer(" before"), answer(" after")
		for _, name := range names[:cut] {
			testenv.NoError(t, os.MkdirAll(filepath.Dir(o.Path(name)), 0o700))
			testenv.NoError(t, os.WriteFile(o.Path(name), first[name], 0o600))
		}
		if err := o.Write(second, AsideSuffix); err != nil {
			t.Errorf("cut off after %v: %v", names[:cut], err)
			continue
		}
		for name, content := range second {
			testenv.Equal(t, string(testenv.Must(os.ReadFile(o.Path(name)))(t)), string(content), "cut off after %d files: %s has", cut, name)
		}
		for _, name := range names[:cut] {
			if kept, err := os.ReadFile(o.Path(name) + AsideSuffix); isReplaced(name) && (err != nil || string(kept) != string(first[name])) {
				t.Errorf("cut off after %d files: of %s is kept %q, %v", cut, name, kept, err)
			}
		}
	}
	dir := t.TempDir()
	o := Folders{Server: dir, TLS: filepath.Join(dir, "tls"), Cred: filepath.Join(dir, "cred")}
	testenv.NoError(t, os.WriteFile(o.Path("token"), []byte("of another cluster"), 0o600))
	testenv.WantError(t, o.Write(answer(""), AsideSuffix), "is not the cluster's")
}

// TestFirstRootIsSharedAfterRenewal: servers of earlier versions refuse a file that they do not know, so they get it
// only where they need it. A join that was interrupted before the renewal takes the renewed certificates.
func TestFirstRootIsSharedAfterRenewal(t *testing.T) {
	folders := func() Folders {
		dir := t.TempDir()
		return Folders{Server: dir, TLS: filepath.Join(dir, "tls"), Cred: filepath.Join(dir, "cred")}
	}
	f, joining := folders(), folders()
	renew := func(left time.Duration) *pki.PKI {
		for _, s := range pki.Signers() {
			testenv.NoError(t, testca.WriteOwn(f.TLS, string(s), time.Now().Add(left)))
		}
		p := testenv.Must(pki.Open(pki.Options{Dir: f.TLS, Logger: slog.New(slog.DiscardHandler)}))(t)
		testenv.NoError(t, p.RecordRoot())
		return p
	}
	p := renew(time.Hour)
	for _, name := range []string{token.ServerFile, token.AgentFile} {
		testenv.NoError(t, os.WriteFile(f.Path(name), []byte(name), 0o600))
	}
	before := testenv.Must(f.Read())(t)
	testenv.True(t, before[firstRoot] == nil, "it is shared before a renewal")
	testenv.NoError(t, joining.Write(before, AsideSuffix))
	renew(time.Hour * 24)
	after := testenv.Must(f.Read())(t)
	testenv.NoError(t, joining.Write(after, AsideSuffix))
	testenv.Equal(t, string(testenv.Must(os.ReadFile(joining.Path("tls/server-ca.crt")))(t)), string(after["tls/server-ca.crt"]), "server-ca:")
	testenv.True(t, testenv.Must(pki.ReadRoot(joining.TLS))(t).Equal(p.Root()), "the joining server has another name of the cluster")
}
