// SPDX-License-Identifier: Apache-2.0

package server

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/component-base/metrics/legacyregistry"
)

// serveMetrics adds a part's numbers to those at the API server's /metrics, which shows the process-wide registry. The
// function that it returns takes them away again. In a process with two servers, which only tests are, the first one's
// are shown.
func serveMetrics(c prometheus.Collector, log *slog.Logger) (stop func()) {
	r := legacyregistry.Registerer()
	if err := r.Register(c); err != nil {
		log.Warn("the store's numbers are not shown at /metrics", "error", err)
		return func() {}
	}
	return func() { r.Unregister(c) }
}
