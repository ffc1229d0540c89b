// SPDX-License-Identifier: Apache-2.0

package clusterconfig

import (
	"os"
	"path/filepath"
	"testing"
)

// TestKeptBackend: a server's copy of the cluster's back end; what is damaged or of another version counts as nothing,
// and is replaced.
func TestKeptBackend(t *testing.T) {
	dir := t.TempDir()
	is := func(want string) {
		t.Helper()
		if got := ReadBackend(dir); got != want {
			t.Errorf("it is %q, want %q", got, want)
		}
	}
	is("")
	for _, name := range RunningBackends() {
		if err := WriteBackend(dir, name); err != nil {
			t.Fatal(err)
		}
		is(name)
	}
	for _, text := range []string{"", `{"backend": "vxl`, `{"backend": "pigeons"}`, `{"backend": "none"}`, `[]`} {
		if err := os.WriteFile(filepath.Join(dir, backendFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		is("")
		if err := WriteBackend(dir, NetworkHostGateway); err != nil {
			t.Fatal(err)
		}
		is(NetworkHostGateway)
	}
	for range 2 {
		if err := WriteBackend(dir, NetworkNone); err != nil {
			t.Fatal(err)
		}
		is("")
	}
}
