// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestOOMScoreIsLoweredWherePermitted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "oom_score_adj")
	testenv.NoError(t, os.WriteFile(file, []byte("12\n"), 0o600))
	if got, err := permittedOOMScore(file, -999); got != -999 || err != nil {
		t.Errorf("where it may be written: %d, %v", got, err)
	}
	testenv.Equal(t, string(testenv.Must(os.ReadFile(file))(t)), "-999", "the file has")
	if got, err := permittedOOMScore(filepath.Join(file, "missing"), -999); got != -999 || err != nil {
		t.Errorf("where there is none: %d, %v", got, err)
	}
}

// TestOOMScoreFallsBackWithoutCapability asks this kernel, which lets a process without CAP_SYS_RESOURCE not lower the
// number.
func TestOOMScoreFallsBackWithoutCapability(t *testing.T) {
	b := testenv.Must(os.ReadFile(oomScoreFile))(t)
	have := testenv.Must(strconv.Atoi(strings.TrimSpace(string(b))))(t)
	switch err := os.WriteFile(oomScoreFile, []byte("-1000"), 0o600); {
	case err == nil:
		testenv.NoError(t, os.WriteFile(oomScoreFile, b, 0o600))
		t.Skip("this process may lower its own")
	case !strings.Contains(err.Error(), unix.EACCES.Error()):
		t.Fatal(err)
	}
	if got, err := permittedOOMScore(oomScoreFile, -1000); int(got) != have || err != nil {
		t.Errorf("got %d, %v, want %d", got, err, have)
	}
}
