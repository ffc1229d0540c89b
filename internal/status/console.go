// SPDX-License-Identifier: Apache-2.0

package status

// ConsoleSettingPath is the path at which a server's API says whether the cluster's operator allows the web console.
// Each user of the cluster may read it. The response is a Console in JSON.
const ConsoleSettingPath = "/coracle/console"

// Console is the operator's setting for the web console.
type Console struct {
	// Disabled says whether the servers were started with --disable console.
	Disabled bool `json:"disabled"`
}
