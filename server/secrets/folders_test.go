// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"os"
	"path/filepath"
	"testing"

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
			if files[name] = []byte(name); replaced(name) {
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
			if kept, err := os.ReadFile(o.Path(name) + AsideSuffix); replaced(name) && (err != nil || string(kept) != string(first[name])) {
				t.Errorf("cut off after %d files: of %s is kept %q, %v", cut, name, kept, err)
			}
		}
	}
	dir := t.TempDir()
	o := Folders{Server: dir, TLS: filepath.Join(dir, "tls"), Cred: filepath.Join(dir, "cred")}
	testenv.NoError(t, os.WriteFile(o.Path("token"), []byte("of another cluster"), 0o600))
	testenv.WantError(t, o.Write(answer(""), AsideSuffix), "is not the cluster's")
}
