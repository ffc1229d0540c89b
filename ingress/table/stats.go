// SPDX-License-Identifier: Apache-2.0

package table

// Stats are the counters of a proxy since it started, in the response to Change.Stats.
type Stats struct {
	// Connections is the number of open connections of clients, without Websockets.
	Connections int64 `json:"connections"`
	Websockets  int64 `json:"websockets"`
	// Refused counts closed connections: above a limit, for lack of memory, or without their PROXY protocol header.
	// Limited says which limits clients met. DialFailures counts failed attempts to connect to endpoints. Panics counts
	// requests that ended by a fault of the proxy.
	Refused      uint64      `json:"refused"`
	DialFailures uint64      `json:"dialFailures"`
	Panics       uint64      `json:"panics"`
	Limited      Limited     `json:"limited"`
	Hosts        []HostStats `json:"hosts,omitempty"`
}

// Limited counts connections and requests of clients that were refused or closed for a limit: that of memory, that of
// connections, and that of requests under way.
type Limited struct {
	Memory      uint64 `json:"memory"`
	Connections uint64 `json:"connections"`
	Requests    uint64 `json:"requests"`
}

// MaxCountedHosts is the greatest length of Stats.Hosts, without OtherHosts.
const MaxCountedHosts = 128

// OtherHosts is the name of the entry, without a site, for all hosts that have no counters of their own. It also counts
// requests for hosts that are not in the table.
const OtherHosts = "other"

// DurationBuckets are the upper bounds of HostStats.Durations in seconds. They are the same as in Prometheus' clients
// and in ingress-nginx.
var DurationBuckets = [...]float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// HostStats are the counters of a host of a site.
type HostStats struct {
	Site string `json:"site,omitempty"`
	Host string `json:"host"`
	// Requests are counted by the first digit of the status. Requests that ended without a status are at 0.
	Requests [6]uint64 `json:"requests"`
	// Durations counts requests by the time from their header to the end of the response. Each element counts those
	// within a bound of DurationBuckets and above the bound before. The last element counts those above all bounds.
	// Streams and websockets are not counted.
	Durations [len(DurationBuckets) + 1]uint64 `json:"durations"`
	// Seconds is the sum of the durations of these requests.
	Seconds float64 `json:"seconds"`
}
