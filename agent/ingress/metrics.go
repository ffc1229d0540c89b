// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// statsTimeout limits how long a scrape waits for the proxy.
const statsTimeout = 2 * time.Second

// Descriptions of the proxy's metrics.
var (
	requestsTotal = prometheus.NewDesc("coracle_ingress_requests_total", "Requests that the node's ingress proxy has answered.",
		[]string{"site", "host", "status"}, nil)
	requestDuration = prometheus.NewDesc("coracle_ingress_request_duration_seconds",
		"Time from the header of a request to the end of its response, without streams and websockets.", []string{"site", "host"}, nil)
	openConnections = prometheus.NewDesc("coracle_ingress_open_connections", "Connections of clients.", []string{"kind"}, nil)
	refusedTotal    = prometheus.NewDesc("coracle_ingress_refused_connections_total", "Connections of clients that were too many.", nil,
		nil)
	dialFailures = prometheus.NewDesc("coracle_ingress_backend_connect_errors_total", "Attempts to connect to endpoints that failed.", nil,
		nil)
	panicsTotal = prometheus.NewDesc("coracle_ingress_panics_total", "Requests that ended by a fault of the proxy.", nil, nil)
)

// question asks the goroutine that owns the proxy's connection for the counters.
type question struct {
	ctx      context.Context
	response chan<- *table.Stats // capacity 1: the caller may not wait any more
}

// Metrics collects the proxy's counters for Prometheus. They are requested from the proxy at each scrape. There are
// none without a proxy.
type Metrics struct{ n *Node }

// Metrics returns a Prometheus collector of the counters of this node's proxy.
func (n *Node) Metrics() *Metrics { return &Metrics{n} }

// Describe implements prometheus.Collector.
func (*Metrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{requestsTotal, requestDuration, openConnections, refusedTotal, dialFailures, panicsTotal} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), statsTimeout)
	defer cancel()
	s := m.n.stats(ctx)
	if s == nil {
		return
	}
	gauge := func(value int64, kind string) {
		to <- prometheus.MustNewConstMetric(openConnections, prometheus.GaugeValue, float64(value), kind)
	}
	gauge(s.Connections, "http")
	gauge(s.Websockets, "websocket")
	for d, value := range map[*prometheus.Desc]uint64{refusedTotal: s.Refused, dialFailures: s.DialFailures, panicsTotal: s.Panics} {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value))
	}
	for _, h := range s.Hosts {
		for class, count := range h.Requests {
			status := strconv.Itoa(class) + "xx"
			if class == 0 {
				status = "none"
			}
			if count > 0 {
				to <- prometheus.MustNewConstMetric(requestsTotal, prometheus.CounterValue, float64(count), h.Site, h.Host, status)
			}
		}
		all, upTo := uint64(0), map[float64]uint64{}
		for i, bound := range table.DurationBuckets {
			all += h.Durations[i]
			upTo[bound] = all
		}
		if all += h.Durations[len(table.DurationBuckets)]; all > 0 {
			to <- prometheus.MustNewConstHistogram(requestDuration, all, h.Seconds, upTo, h.Site, h.Host)
		}
	}
}

// stats asks for the proxy's counters. It returns nil if there is no proxy, or no reply before ctx ends.
func (n *Node) stats(ctx context.Context) *table.Stats {
	answer := make(chan *table.Stats, 1)
	select {
	case n.questions <- question{ctx, answer}:
	case <-ctx.Done():
		return nil
	}
	select {
	case s := <-answer:
		return s
	case <-ctx.Done():
		return nil
	}
}

// report sends the proxy's counters to q.response, or nil without them. A proxy that fails to reply is replaced as
// after a failed probe.
func (s *serving) report(ctx context.Context, q question) {
	if s.supervisor.current == nil || q.ctx.Err() != nil {
		q.response <- nil
		return
	}
	stats, err := s.stats(ctx)
	q.response <- stats
	if err != nil && ctx.Err() == nil {
		s.giveUp(err)
	}
}
