// SPDX-License-Identifier: Apache-2.0

package filewatch

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestLowInotifyLimitsAreRaised: limits that are too low are raised, others stay, and what cannot be read or written is
// said.
func TestLowInotifyLimitsAreRaised(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{"max_user_instances": "128\n", "max_user_watches": "1000000\n"}
	for name, text := range files {
		testenv.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	testenv.NoError(t, raiseLimits(dir))
	for name, want := range map[string]string{"max_user_instances": "1024", "max_user_watches": "1000000\n"} {
		testenv.Equal(t, string(testenv.Must(os.ReadFile(filepath.Join(dir, name)))(t)), want, "%s is", name)
	}
	testenv.Fails(t, raiseLimits(filepath.Join(dir, "none")), "a kernel without the limits is not reported")
}
