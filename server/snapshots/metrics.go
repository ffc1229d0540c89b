// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// counts has the results of the scheduled snapshots since the start.
type counts struct {
	failures    atomic.Int64
	lastSuccess atomic.Int64 // seconds since 1970, 0 for none
	lastSize    atomic.Int64
}

// count records the result of a scheduled snapshot.
func (k *Keeper) count(err error) error {
	if err != nil {
		k.counts.failures.Add(1)
	} else {
		k.counts.lastSuccess.Store(k.o.Clock.Now().Unix())
	}
	return err
}

var (
	failuresDesc = prometheus.NewDesc("coracle_snapshot_failures_total", "Scheduled snapshots that failed since the start.", nil, nil)
	successDesc  = prometheus.NewDesc("coracle_snapshot_success_timestamp_seconds",
		"When a scheduled snapshot was last taken, or found not to be needed because nothing had changed; 0 for not since the start.", nil,
		nil)
	sizeDesc = prometheus.NewDesc("coracle_snapshot_size_bytes", "Size of the snapshot that was taken last; 0 for none since the start.",
		nil, nil)
)

// Describe implements prometheus.Collector.
func (k *Keeper) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{failuresDesc, successDesc, sizeDesc} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (k *Keeper) Collect(out chan<- prometheus.Metric) {
	out <- prometheus.MustNewConstMetric(failuresDesc, prometheus.CounterValue, float64(k.counts.failures.Load()))
	out <- prometheus.MustNewConstMetric(successDesc, prometheus.GaugeValue, float64(k.counts.lastSuccess.Load()))
	out <- prometheus.MustNewConstMetric(sizeDesc, prometheus.GaugeValue, float64(k.counts.lastSize.Load()))
}
