// SPDX-License-Identifier: Apache-2.0

package clusterconfig

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestDamagedBackendRecordIsReplaced: a server's copy of the cluster's back end; what is damaged or of another version
// counts as nothing, and is replaced.
func TestDamagedBackendRecordIsReplaced(t *testing.T) {
	dir := t.TempDir()
	is := func(want string) {
		t.Helper()
		testenv.Equal(t, ReadBackend(dir), want, "it is")
	}
	is("")
	for _, name := range RunningBackends() {
		testenv.NoError(t, WriteBackend(dir, name))
		is(name)
	}
	for _, text := range []string{"", `{"backend": "vxl`, `{"backend": "pigeons"}`, `{"backend": "none"}`, `[]`} {
		testenv.NoError(t, os.WriteFile(filepath.Join(dir, backendFile), []byte(text), 0o600))
		is("")
		testenv.NoError(t, WriteBackend(dir, NetworkHostGateway))
		is(NetworkHostGateway)
	}
	for range 2 {
		testenv.NoError(t, WriteBackend(dir, NetworkNone))
		is("")
	}
}
