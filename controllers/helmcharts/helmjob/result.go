// SPDX-License-Identifier: Apache-2.0

package helmjob

// Action is what was done.
type Action string

const (
	Nothing     Action = ""            // it failed before anything was changed, or Abort left it alone
	Installed   Action = "installed"   // there was no release
	Upgraded    Action = "upgraded"    // there was one; a new revision was made
	Unchanged   Action = "unchanged"   // there was one, and it is what the request describes
	Recovered   Action = "recovered"   // it was left half-done, or had failed, or its objects had been changed; Result.Found says which
	Uninstalled Action = "uninstalled" // it is gone; also where there was none
)

// Reason says in a word why a request failed, fit for a condition or an event.
type Reason string

const (
	BadRequest            Reason = "BadRequest"            // the request itself cannot be done
	InvalidValues         Reason = "InvalidValues"         // values are no YAML, or do not fit the chart's schema
	InvalidChart          Reason = "InvalidChart"          // no archive, or no chart in it, or one that cannot be installed
	ChartNotFound         Reason = "ChartNotFound"         // no such chart, version, file or repository
	RepositoryUnreachable Reason = "RepositoryUnreachable" // no answer, or an error of the server
	RepositoryNotTrusted  Reason = "RepositoryNotTrusted"  // its certificate is not signed by a trusted authority, or names another host
	Unauthorized          Reason = "Unauthorized"          // the repository wants other credentials
	Incompatible          Reason = "Incompatible"          // the chart wants another version of Kubernetes
	RenderFailed          Reason = "RenderFailed"          // a template failed, or what it made is no valid object
	Conflict              Reason = "Conflict"              // an object exists that belongs to another owner
	InstallFailed         Reason = "InstallFailed"         // the cluster refused something half-way
	UpgradeFailed         Reason = "UpgradeFailed"         // the same, of an upgrade
	UninstallFailed       Reason = "UninstallFailed"       // something could not be removed
	HookFailed            Reason = "HookFailed"            // a hook ended with an error
	TimedOut              Reason = "TimedOut"              // a hook, or what was waited for, took longer than the timeout
	Aborted               Reason = "Aborted"               // failed before with the same chart and values, and the policy is Abort
	ClusterUnreachable    Reason = "ClusterUnreachable"    // the API server does not answer
	Failed                Reason = "Failed"                // anything else
)

// Result is what became of a request. Reason is empty where it was done.
type Result struct {
	Action Action `json:"action,omitempty"`
	Reason Reason `json:"reason,omitempty"`
	// Message says in plain English what happened and, of a failure, what to do about it. It has no credentials and no
	// values in it.
	Message string `json:"message"`
	// TryAgain says whether the same request can succeed later, without anybody changing it.
	TryAgain bool `json:"tryAgain,omitempty"`
	// Found is the state in which the release was found, in Helm's words ("pending-upgrade", "uninstalling", "failed"),
	// or "drifted" where its objects were not what its manifest says. "": there was none, or it was deployed.
	Found string `json:"found,omitempty"`
	// Release is as it is now; nil where there is none.
	Release *Release `json:"release,omitempty"`
}

// Failed says whether the request was not done.
func (r *Result) Failed() bool { return r.Reason != "" }

// Release is one revision of a release.
type Release struct {
	Revision int    `json:"revision"`
	Status   string `json:"status"` // Helm's word: deployed, failed, pending-install, …
}
