// SPDX-License-Identifier: Apache-2.0

package table

// Stats are what a proxy has counted since it began, in the answer to Change.Stats.
type Stats struct {
	// Connections of clients are open, those of Websockets not among them.
	Connections int64 `json:"connections"`
	Websockets  int64 `json:"websockets"`
	// Refused connections were too many; DialFailures are attempts to connect to endpoints that failed; Panics are
	// requests that ended by a fault of the proxy.
	Refused      uint64      `json:"refused"`
	DialFailures uint64      `json:"dialFailures"`
	Panics       uint64      `json:"panics"`
	Hosts        []HostStats `json:"hosts,omitempty"`
}

// MaxCountedHosts bounds Stats.Hosts, apart from OtherHosts.
const MaxCountedHosts = 128

// OtherHosts is the name of the host, of no site, for all hosts that have no counters of their own, and for requests to
// hosts that the table does not have.
const OtherHosts = "other"

// DurationBuckets are the upper bounds of HostStats.Durations in seconds, as Prometheus' clients and ingress-nginx have
// them.
var DurationBuckets = [...]float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// HostStats are those of a host of a site.
type HostStats struct {
	Site string `json:"site,omitempty"`
	Host string `json:"host"`
	// Requests are counted by the first digit of the status; at 0 are those that ended without one.
	Requests [6]uint64 `json:"requests"`
	// Durations are how many requests took at most as long as each of DurationBuckets and longer than the one before;
	// the last one took longer than all. From the header of the request to the end of the response; streams and
	// websockets are not among them.
	Durations [len(DurationBuckets) + 1]uint64 `json:"durations"`
	// Seconds is how long these requests took together.
	Seconds float64 `json:"seconds"`
}
