// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestRestartHasASessionOfItsOwn: what ends this process by its terminal does not leave the service stopped.
func TestRestartHasASessionOfItsOwn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "stat")
	testenv.NoError(t, service{Restart: []string{"sh", "-c", "echo $$ $(cat /proc/$$/stat) >" + file}}.restart())
	fields := strings.Fields(string(testenv.Must(os.ReadFile(file))(t)))
	testenv.Equal(t, fields[6], fields[0], "the session's leader is") // the shell's number, and then proc_pid_stat(5)
}

// TestCopiesOfKubeletStateAreForRoot: some have hashes of credentials.
func TestCopiesOfKubeletStateAreForRoot(t *testing.T) {
	root, to := t.TempDir(), filepath.Join(t.TempDir(), "kubelet")
	testenv.NoError(t, os.MkdirAll(filepath.Join(root, "image_manager/pulled"), 0o755))
	testenv.NoError(t, os.WriteFile(filepath.Join(root, "image_manager/pulled/a"), []byte("a"), 0o600))
	testenv.NoError(t, copyKubeletState(root, to))
	testenv.Equal(t, string(testenv.Must(os.ReadFile(filepath.Join(to, "image_manager/pulled/a")))(t)), "a", "copied:")
	testenv.Equal(t, testenv.Must(os.Stat(to))(t).Mode().Perm(), 0o700, "mode:")
}
