// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"runtime"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// A Collector gives a store's metrics to Prometheus. A scrape is cheap: it reads counters and requests one Sample.
type Collector struct {
	counters *Counters
	source   Source
}

var _ prometheus.Collector = (*Collector)(nil)

// NewCollector returns a collector of the counters and of a source's samples.
func NewCollector(c *Counters, s Source) *Collector { return &Collector{c, s} }

// Describe sends the descriptions of the metrics.
func (*Collector) Describe(out chan<- *prometheus.Desc) {
	for _, m := range numbers {
		out <- m.desc
	}
	for _, m := range durations {
		out <- m.desc
	}
	for _, d := range labelledMetrics {
		out <- d
	}
}

// Collect sends the present values of all metrics.
func (c *Collector) Collect(out chan<- prometheus.Metric) {
	s := c.source.Sample()
	for _, m := range numbers {
		out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(&s, c.counters))
	}
	for _, m := range durations {
		out <- m.of(c.counters).metric(m.desc)
	}
	one := func(d *prometheus.Desc, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, gauge, 1, labels...)
	}
	one(labelledMetrics[0], s.Version)
	one(labelledMetrics[1], runtime.Version())
	one(labelledMetrics[2], strconv.FormatUint(s.Member, 16))
	for _, r := range refusals {
		out <- prometheus.MustNewConstMetric(labelledMetrics[3], gauge, boolValue(s.Refusing == r), string(r))
	}
	for _, p := range s.Peers {
		to := strconv.FormatUint(p.Member, 16)
		out <- prometheus.MustNewConstMetric(peerSent, counter, float64(p.Sent), to)
		out <- prometheus.MustNewConstMetric(peerReceived, counter, float64(p.Received), to)
		out <- prometheus.MustNewConstMetric(peerFailures, counter, float64(p.Failures), to)
		out <- prometheus.MustNewConstMetric(peerContact, gauge, seconds(p.LastContact), to)
		if p.RTT != nil {
			out <- p.RTT.metric(peerRTT, to)
		}
	}
}

const (
	gauge   = prometheus.GaugeValue
	counter = prometheus.CounterValue
)

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// labelledMetrics are the metrics with labels. The value of the first three is always 1.
var labelledMetrics = []*prometheus.Desc{
	desc("etcd_server_version", "Which version of etcd's contract is served. 1 for 'server_version' label with current version.",
		"server_version"),
	desc("etcd_server_go_version", "Which Go version server is running with. 1 for 'server_go_version' label with current version.",
		"server_go_version"),
	desc("etcd_server_id", "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.", "server_id"),
	desc("coracle_store_writes_refused", "Whether new writes are refused for this reason. 1 is refused, 0 is not.", "reason"),
	peerSent, peerReceived, peerFailures, peerContact, peerRTT,
}

var (
	peerSent     = desc("etcd_network_peer_sent_bytes_total", "The total number of bytes sent to peers.", "To")
	peerReceived = desc("etcd_network_peer_received_bytes_total", "The total number of bytes received from peers.", "From")
	peerFailures = desc("etcd_network_peer_sent_failures_total", "The total number of send failures to peers.", "To")
	peerContact  = desc("coracle_store_peer_contact_timestamp_seconds", "When the peer last answered, in seconds since 1970; 0 if never.",
		"To")
	peerRTT = desc("etcd_network_peer_round_trip_time_seconds", "Round-Trip-Time histogram between peers.", "To")
)
