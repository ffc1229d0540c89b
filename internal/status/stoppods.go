// SPDX-License-Identifier: Apache-2.0

package status

// StopPodsPath is the path at which the admin socket stops the pods of a machine that goes down. GET returns a
// [StopPodsResult] with the configured time alone. POST stops them, within the time of the query parameter "within" if
// it is given.
const StopPodsPath = "/v1/node/stop-pods"

// StopPodsResult is the result of a stop of all pods.
type StopPodsResult struct {
	// Within is the time for the pods, as a Go duration.
	Within string `json:"within"`
	// Message says what was done, and Error what was not.
	Message string `json:"message,omitempty"`
	Error   string `json:"error,omitempty"`
	// Ends says that the process ends now.
	Ends bool `json:"ends,omitempty"`
}
