// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	kubeproxyconfig "k8s.io/kubernetes/pkg/proxy/apis/config"
	"k8s.io/kubernetes/pkg/proxy/metrics"

	"github.com/coracle-k8s/coracle/internal/nft"
)

// Metrics have kube-proxy's names and are counted by its code, so that its dashboards and alerts can be used. They are
// the process' own, as in kube-proxy: the kubelet's /metrics shows them.

// showMetrics registers the metrics of a back end. Upstream's registry belongs to the process, and registers them once.
func showMetrics(backend string) {
	mode := kubeproxyconfig.ProxyModeNFTables
	if backend == nft.ServicesByIPVS {
		mode = kubeproxyconfig.ProxyModeIPVS
	}
	metrics.RegisterMetrics(mode)
}

// queued records in the metrics that there is something to write.
func (p *Proxy) queued() {
	for _, c := range p.o.ClusterCIDRs {
		metrics.SyncProxyRulesLastQueuedTimestamp.WithLabelValues(string(familyOf(c.Addr()))).SetToCurrentTime()
	}
}
