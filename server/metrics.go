// SPDX-License-Identifier: Apache-2.0

package server

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/component-base/metrics/legacyregistry"
)

// serveMetrics registers a part's collector at the process-wide registry, which the API server's /metrics shows. The
// returned function unregisters it. In a process with two servers, which exists only in tests, the first one's metrics
// are shown.
func serveMetrics(c prometheus.Collector, log *slog.Logger) (stop func()) {
	r := legacyregistry.Registerer()
	if err := r.Register(c); err != nil {
		log.Warn("the store's metrics are not shown at /metrics", "error", err)
		return func() {}
	}
	return func() { r.Unregister(c) }
}
