// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/server/roster"
)

// TestKeepFiles: of an answer those files are taken that all servers have, and nothing is replaced.
func TestKeepFiles(t *testing.T) {
	dir := t.TempDir()
	o := &Options{ServerDir: dir, TLSDir: filepath.Join(dir, "tls"), CredDir: filepath.Join(dir, "cred")}
	required, optional := commonFiles()
	answer := func() map[string][]byte {
		files := map[string][]byte{}
		for _, name := range append(required, optional...) {
			files[name] = []byte(name)
		}
		return files
	}
	refused := func(files map[string][]byte, want string) {
		t.Helper()
		if err := keepFiles(o, files, asideSuffix); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left %v, %v", left, err)
		}
	}
	for _, name := range []string{"../evil", "tls/../../evil", "tls/admin.pem", "/etc/passwd", "store/log"} {
		files := answer()
		files[name] = []byte("x")
		refused(files, "no server keeps")
	}
	for _, name := range required {
		files := answer()
		delete(files, name)
		refused(files, name)
	}
	for range 2 { // an interrupted join is repeated
		if err := keepFiles(o, answer(), asideSuffix); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range answer() {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %v", name, fi.Mode())
		}
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != string(content) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	files := answer()
	files[required[0]] = []byte("of another cluster")
	if err := keepFiles(o, files, asideSuffix); err == nil || !strings.Contains(err.Error(), "is not the cluster's") {
		t.Error(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, required[0])); err != nil || string(got) != required[0] {
		t.Errorf("%q, %v", got, err)
	}
}

// TestFilesOfAnInterruptedJoin: what the cluster has replaced since is replaced here too, wherever the join was
// interrupted, and what was there is kept. Without the authorities nothing says that it is of the same cluster.
func TestFilesOfAnInterruptedJoin(t *testing.T) {
	required, optional := commonFiles()
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
		o := &Options{ServerDir: dir, TLSDir: filepath.Join(dir, "tls"), CredDir: filepath.Join(dir, "cred")}
		first, second := answer(" before"), answer(" after")
		for _, name := range names[:cut] {
			if err := os.MkdirAll(filepath.Dir(o.path(name)), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(o.path(name), first[name], 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := keepFiles(o, second, asideSuffix); err != nil {
			t.Errorf("cut off after %v: %v", names[:cut], err)
			continue
		}
		for name, content := range second {
			if got, err := os.ReadFile(o.path(name)); err != nil || string(got) != string(content) {
				t.Errorf("cut off after %d files: %s has %q, %v", cut, name, got, err)
			}
		}
		for _, name := range names[:cut] {
			if kept, err := os.ReadFile(o.path(name) + asideSuffix); replaced(name) && (err != nil || string(kept) != string(first[name])) {
				t.Errorf("cut off after %d files: of %s is kept %q, %v", cut, name, kept, err)
			}
		}
	}
	dir := t.TempDir()
	o := &Options{ServerDir: dir, TLSDir: filepath.Join(dir, "tls"), CredDir: filepath.Join(dir, "cred")}
	if err := os.WriteFile(o.path("token"), []byte("of another cluster"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := keepFiles(o, answer(""), asideSuffix); err == nil || !strings.Contains(err.Error(), "is not the cluster's") {
		t.Errorf("a token without authorities: %v", err)
	}
}

// TestHashIsDemanded: a server that does not say with which keys it comes is let in as long as there may be versions
// that cannot.
func TestHashIsDemanded(t *testing.T) {
	for own, want := range map[int]bool{1: true, 2: true, 3: false, 4: false} {
		if got := mayComeWithout(func(other int) bool { return own-other >= -1 && own-other <= 1 }); got != want {
			t.Errorf("a program with protocol %d lets it in: %v", own, got)
		}
	}
}

// TestJoinedIsKept: what the cluster said is asked for once; a damaged note is not taken for none.
func TestJoinedIsKept(t *testing.T) {
	dir := t.TempDir()
	o := Options{ServerDir: dir, StoreDir: filepath.Join(dir, "store")}
	j := &Joined{Settings: options(t, t.TempDir()).Cluster, NodePortRange: "30000-32767", Peers: []string{"10.0.0.1:6443"}}
	if err := writeJoined(filepath.Join(dir, joinedFile), j); err != nil {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), o, Joining{Token: "CRC1" + strings.Repeat("0", 64) + "::agent:x"}); err == nil || !strings.Contains(err.Error(), "for agents") {
		t.Errorf("before it ever took part, the cluster is not asked again: %v", err)
	}
	peers := filepath.Join(dir, roster.PeersFile)
	if err := os.WriteFile(peers, []byte(`["10.0.0.1:6443"]`), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Join(t.Context(), o, Joining{Address: "127.0.0.1:1", Token: "x"})
	if err != nil || fmt.Sprint(got) != fmt.Sprint(j) {
		t.Errorf("%v, %v, want %v", got, err, j)
	}
	if err := os.WriteFile(filepath.Join(dir, joinedFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), o, Joining{}); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(dir, joinedFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), o, Joining{Token: "CRC1" + strings.Repeat("0", 64) + "::agent:x"}); err == nil || !strings.Contains(err.Error(), "for agents") {
		t.Error(err)
	}
	if err := os.MkdirAll(filepath.Join(o.StoreDir, "log"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), o, Joining{Token: "x"}); err == nil || !strings.Contains(err.Error(), "cannot join another one") {
		t.Error(err)
	}
}

// TestFounderAlone: what the first server wrote down for another one binds it as long as there is another one.
func TestFounderAlone(t *testing.T) {
	dir := t.TempDir()
	file, peers := filepath.Join(dir, joinedFile), filepath.Join(dir, roster.PeersFile)
	if err := writeJoined(file, &Joined{Founder: true, Settings: options(t, t.TempDir()).Cluster, NodePortRange: "30000-32767"}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(peers, []byte(`["10.0.0.2:6443"]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if j, err := WasJoined(dir); err != nil || j == nil || j.NodePortRange != "30000-32767" {
		t.Errorf("with another server: %v, %v", j, err)
	}
	if err := os.Remove(peers); err != nil {
		t.Fatal(err)
	}
	if j, err := WasJoined(dir); err != nil || j != nil {
		t.Errorf("the other one never came: %v, %v", j, err)
	}
	if fileExists(file) {
		t.Error("the note is there still")
	}
}
