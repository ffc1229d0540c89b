// SPDX-License-Identifier: Apache-2.0

package status

// ConsolePath is where the API of a server says whether the cluster's operator wants the web console. Each user of the
// cluster may ask. The answer is a Console in JSON.
const ConsolePath = "/coracle/console"

// Console is the operator's word about the web console.
type Console struct {
	// Disabled says that the servers were started with --disable console.
	Disabled bool `json:"disabled"`
}
