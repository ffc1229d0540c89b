// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	kubeproxyconfig "k8s.io/kubernetes/pkg/proxy/apis/config"
	"k8s.io/kubernetes/pkg/proxy/metrics"

	"github.com/coracle-k8s/coracle/internal/nft"
)

// Numbers have kube-proxy's names and are counted by its code, so that dashboards and alerts for it are of use here.
// They are the process' own, as there: the kubelet's /metrics shows them.

// showMetrics makes the numbers of a back end visible. Upstream's registry is the process', and takes them once.
func showMetrics(backend string) {
	mode := kubeproxyconfig.ProxyModeNFTables
	if backend == nft.ServicesByIPVS {
		mode = kubeproxyconfig.ProxyModeIPVS
	}
	metrics.RegisterMetrics(mode)
}

// queued notes that there is something to write.
func (p *Proxy) queued() {
	for _, c := range p.o.ClusterCIDRs {
		metrics.SyncProxyRulesLastQueuedTimestamp.WithLabelValues(string(familyOf(c.Addr()))).SetToCurrentTime()
	}
}
