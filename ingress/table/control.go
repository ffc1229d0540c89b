// SPDX-License-Identifier: Apache-2.0

package table

// Answer is what the proxy says, one line of JSON, after each Commit.
type Answer struct {
	// Problems are what a section lacks, for people, by its key. The sections named are served as far as they can be.
	Problems map[string]string `json:"problems,omitempty"`
}

// What the agent hands to the proxy when it starts it.
const (
	// ControlName is the name of the descriptor of the Unix socket on which the proxy listens for its agent, in EnvNames.
	ControlName = "control"
	// EnvNames is the environment variable with the names of the listening sockets, from descriptor 3 on, with commas between them. Apart from ControlName
	// a name is that of a site, a slash, and HTTP or HTTPS: "ingress/http", "ingress/https".
	EnvNames = "CORACLE_INGRESS_SOCKETS"
	// HTTP and HTTPS are the kinds of listeners.
	HTTP, HTTPS = "http", "https"
)
