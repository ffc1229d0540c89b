// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPermittedOOMScore(t *testing.T) {
	file := filepath.Join(t.TempDir(), "oom_score_adj")
	if err := os.WriteFile(file, []byte("12\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := permittedOOMScore(file, -999); got != -999 || err != nil {
		t.Errorf("where it may be written: %d, %v", got, err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "-999" {
		t.Errorf("the file has %q, %v", b, err)
	}
	if got, err := permittedOOMScore(filepath.Join(file, "missing"), -999); got != -999 || err != nil {
		t.Errorf("where there is none: %d, %v", got, err)
	}
}

// TestForbiddenOOMScore asks this kernel, which lets a process without CAP_SYS_RESOURCE not lower the number.
func TestForbiddenOOMScore(t *testing.T) {
	b, err := os.ReadFile(oomScoreFile)
	if err != nil {
		t.Fatal(err)
	}
	have, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	switch err := os.WriteFile(oomScoreFile, []byte("-1000"), 0o600); {
	case err == nil:
		if err := os.WriteFile(oomScoreFile, b, 0o600); err != nil {
			t.Fatal(err)
		}
		t.Skip("this process may lower its own")
	case !strings.Contains(err.Error(), unix.EACCES.Error()):
		t.Fatal(err)
	}
	if got, err := permittedOOMScore(oomScoreFile, -1000); int(got) != have || err != nil {
		t.Errorf("got %d, %v, want %d", got, err, have)
	}
}
