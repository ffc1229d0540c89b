// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// maxBuckets is the most buckets of a histogram, without the last one, which has no upper bound.
const maxBuckets = 20

// A Histogram counts durations in buckets. Each bucket's upper bound is twice that of the one before. Observe takes two
// atomic additions.
type Histogram struct {
	firstBound time.Duration // upper bound of the first bucket
	n          int           // number of buckets with an upper bound
	counts     [maxBuckets + 1]atomic.Uint64
	sum        atomic.Int64 // nanoseconds
}

// NewHistogram returns a histogram of n buckets, at most 20. first is the upper bound of the first.
func NewHistogram(first time.Duration, n int) *Histogram {
	return &Histogram{firstBound: first, n: min(n, maxBuckets)}
}

// Observe counts a duration.
func (h *Histogram) Observe(d time.Duration) {
	h.counts[h.bucket(d)].Add(1)
	h.sum.Add(int64(d))
}

// bucket returns the index of the first bucket whose upper bound is not less than d.
func (h *Histogram) bucket(d time.Duration) int {
	if d <= h.firstBound {
		return 0
	}
	return min(bits.Len64(uint64((d-1)/h.firstBound)), h.n)
}

// Count returns how many durations were observed.
func (h *Histogram) Count() uint64 {
	var total uint64
	for i := range h.n + 1 {
		total += h.counts[i].Load()
	}
	return total
}

// metric reads the histogram. Durations that are observed meanwhile may or may not be included.
func (h *Histogram) metric(desc *prometheus.Desc, labels ...string) prometheus.Metric {
	buckets := make(map[float64]uint64, h.n)
	var total uint64
	for i := range h.n {
		total += h.counts[i].Load()
		buckets[(h.firstBound << i).Seconds()] = total
	}
	total += h.counts[h.n].Load()
	sum := time.Duration(h.sum.Load()).Seconds()
	return prometheus.MustNewConstHistogram(desc, total, sum, buckets, labels...)
}
