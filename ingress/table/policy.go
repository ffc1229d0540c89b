// SPDX-License-Identifier: Apache-2.0

package table

// Policy is what a route does to requests beyond sending them to a backend. A proxy that does not know one of its fields closes the host, since the field
// may restrict who gets in.
type Policy struct {
	// Redirect answers every request.
	Redirect *Redirect `json:"redirect,omitempty"`
	// AppRoot is where requests for the path / are redirected to, with the status 302.
	AppRoot string `json:"appRoot,omitempty"`
	// Rewrite replaces the path of a request that the route's expression matches; $1 to $9 stand for its groups. The query stays, after that of Rewrite.
	Rewrite string `json:"rewrite,omitempty"`
	// UpstreamHost replaces the Host header on the way to the backend.
	UpstreamHost string `json:"upstreamHost,omitempty"`
	// ForwardedPrefix is the header X-Forwarded-Prefix on the way to the backend.
	ForwardedPrefix string `json:"forwardedPrefix,omitempty"`
}

// Redirect is an answer that names another place. Values of Location may hold the variables of package variable.
type Redirect struct {
	Status   int    `json:"status"`
	Location string `json:"location"`
}

// backends are those of the policy, which may be nil.
func (p *Policy) backends() []Backend { return nil }
