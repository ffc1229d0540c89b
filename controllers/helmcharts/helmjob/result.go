// SPDX-License-Identifier: Apache-2.0

package helmjob

// Action is the change that the child process made to the release.
type Action string

const (
	Nothing     Action = ""            // the operation failed before a change, or Abort left the release unchanged
	Installed   Action = "installed"   // there was no release
	Upgraded    Action = "upgraded"    // there was a release; a new revision was made
	Unchanged   Action = "unchanged"   // there was a release, and it matches the request
	Recovered   Action = "recovered"   // the release was incomplete or failed, or its objects were changed; see Result.Found
	Uninstalled Action = "uninstalled" // the release was removed, or there was none
	RolledBack  Action = "rolledback"  // a new revision is as an earlier one
)

// Reason is the cause of a failed request in one word, for a condition or an event.
type Reason string

const (
	BadRequest            Reason = "BadRequest"            // the request itself cannot be executed
	InvalidValues         Reason = "InvalidValues"         // values are not YAML, or do not match the chart's schema
	InvalidChart          Reason = "InvalidChart"          // no archive, or no chart in it, or one that cannot be installed
	ChartNotFound         Reason = "ChartNotFound"         // no such chart, version, file or repository
	RepositoryUnreachable Reason = "RepositoryUnreachable" // no response, or an error of the server
	RepositoryNotTrusted  Reason = "RepositoryNotTrusted"  // the server's certificate names another host, or no trusted authority signed it
	Unauthorized          Reason = "Unauthorized"          // the repository requires other credentials
	Incompatible          Reason = "Incompatible"          // the chart requires another version of Kubernetes
	RenderFailed          Reason = "RenderFailed"          // a template failed, or its output is not a valid object
	Conflict              Reason = "Conflict"              // an object exists that belongs to another owner
	InstallFailed         Reason = "InstallFailed"         // the cluster refused a change after some had been made
	UpgradeFailed         Reason = "UpgradeFailed"         // the cluster refused a change of an upgrade after some had been made
	UninstallFailed       Reason = "UninstallFailed"       // some object could not be removed
	HookFailed            Reason = "HookFailed"            // a hook ended with an error
	TimedOut              Reason = "TimedOut"              // a hook, or a wait, took longer than the timeout
	Aborted               Reason = "Aborted"               // the same chart and values failed before, and the policy is Abort
	Changed               Reason = "Changed"               // a revision is not as the user saw it
	Busy                  Reason = "Busy"                  // another helm works on the release
	RollbackFailed        Reason = "RollbackFailed"        // the release did not go back
	Refused               Reason = "Refused"               // the user lacks a right; nothing was changed
	ClusterUnreachable    Reason = "ClusterUnreachable"    // the API server does not answer
	Failed                Reason = "Failed"                // any other failure
)

// Result is what a child process writes when it has finished a request. Reason is empty if the request succeeded.
type Result struct {
	Action Action `json:"action,omitempty"`
	Reason Reason `json:"reason,omitempty"`
	// Message says in plain English what happened and, after a failure, what to do about it. It contains no credentials
	// and no values.
	Message string `json:"message"`
	// TryAgain says that the same request may succeed later, without a change by a user.
	TryAgain bool `json:"tryAgain,omitempty"`
	// Found is the state in which the release was found, in Helm's words ("pending-upgrade", "uninstalling", "failed"),
	// or "drifted" if its objects differed from its manifest. It is "" if there was no release, or if it was deployed.
	Found string `json:"found,omitempty"`
	// Release is the current release. It is nil if there is none.
	Release *Release `json:"release,omitempty"`
}

// Failed reports whether the request failed.
func (r *Result) Failed() bool { return r.Reason != "" }

// Release is one revision of a release.
type Release struct {
	Revision int    `json:"revision"`
	Status   string `json:"status"` // Helm's word: deployed, failed, pending-install, …
}
