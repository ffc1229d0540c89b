// SPDX-License-Identifier: Apache-2.0

package slots

import (
	_ "embed" // for the starter
	"fmt"
	"os"
	"path/filepath"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// Starter is the text of coracle-start, the shell script that the service runs. It runs the current version, or the one
// on trial, and takes the way back. It is for any POSIX shell, and needs sync(1), readlink(1) and stat of /proc.
//
//go:embed coracle-start
var Starter string

// Names of the starter and of its variables in the environment.
const (
	// StarterName is the name of its file, beside the link to the program.
	StarterName = "coracle-start"
	// FolderEnv has the folder with the versions.
	FolderEnv = "CORACLE_VERSIONS"
	// TrialEnv has the seconds after which a trial without a commit ends. Without it they are 600.
	TrialEnv = "CORACLE_TRIAL_SECONDS"
	// StarterEnv has the path of the starter that has started the program.
	StarterEnv = "CORACLE_STARTER"
)

// ReplaceStarter replaces the text of an installed starter by Starter, if it differs. It reports whether it did. A file
// of another name, or none, is not touched.
func ReplaceStarter(path string) (replaced bool, err error) {
	if filepath.Base(path) != StarterName || !filepath.IsAbs(path) {
		return false, nil
	}
	if _, err := os.Stat(path); err != nil {
		return false, fmt.Errorf("reading the starter: %w", err)
	}
	replaced, err = atomicfile.WriteIfDifferent(path, []byte(Starter), 0o755)
	if err != nil {
		return false, fmt.Errorf("replacing the starter: %w", err)
	}
	return replaced, nil
}
