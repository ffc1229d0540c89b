// SPDX-License-Identifier: Apache-2.0

package slots

import _ "embed"

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
)
