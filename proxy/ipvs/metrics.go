// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/proxy/metrics"
)

// Upstream's trackers count the changes that they receive. The functions here count what a sync does, under
// kube-proxy's names.

// tried records that a sync of a family has ended.
func (f *family) tried(start time.Time) {
	metrics.SyncProxyRulesLatency.WithLabelValues(string(f.name)).Observe(metrics.SinceInSeconds(start))
}

// recordLatency records that the kernel has the changes of these times, by the clock of the slices' writer.
func (f *family) recordLatency(changes map[types.NamespacedName][]time.Time) {
	metrics.SyncProxyRulesLastTimestamp.WithLabelValues(string(f.name)).SetToCurrentTime()
	for _, times := range changes {
		for _, at := range times {
			metrics.NetworkProgrammingLatency.WithLabelValues(string(f.name)).Observe(metrics.SinceInSeconds(at))
		}
	}
}
