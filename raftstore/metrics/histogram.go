// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// maxBuckets bounds a histogram's buckets, the one without an end not counted.
const maxBuckets = 20

// A Histogram counts durations in buckets each of which reaches twice as far
// as the one before. Observing takes two atomic additions.
type Histogram struct {
	first  time.Duration // upper bound of the first bucket
	n      int           // of buckets with an end
	counts [maxBuckets + 1]atomic.Uint64
	sum    atomic.Int64 // nanoseconds
}

// NewHistogram makes a histogram of n buckets, at most 20, the first of which
// ends with the given duration.
func NewHistogram(first time.Duration, n int) *Histogram {
	return &Histogram{first: first, n: min(n, maxBuckets)}
}

// Observe counts a duration.
func (h *Histogram) Observe(d time.Duration) {
	h.counts[h.bucket(d)].Add(1)
	h.sum.Add(int64(d))
}

// bucket is the number of the first bucket that reaches as far as d.
func (h *Histogram) bucket(d time.Duration) int {
	if d <= h.first {
		return 0
	}
	return min(bits.Len64(uint64((d-1)/h.first)), h.n)
}

// Count is how many durations were observed.
func (h *Histogram) Count() uint64 {
	var total uint64
	for i := range h.n + 1 {
		total += h.counts[i].Load()
	}
	return total
}

// metric reads the histogram. What is observed meanwhile is in it or not.
func (h *Histogram) metric(desc *prometheus.Desc, labels ...string) prometheus.Metric {
	buckets := make(map[float64]uint64, h.n)
	var total uint64
	for i := range h.n {
		total += h.counts[i].Load()
		buckets[(h.first << i).Seconds()] = total
	}
	total += h.counts[h.n].Load()
	sum := time.Duration(h.sum.Load()).Seconds()
	return prometheus.MustNewConstHistogram(desc, total, sum, buckets, labels...)
}
