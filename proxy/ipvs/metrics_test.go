// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-base/metrics/legacyregistry"
	kubeproxyconfig "k8s.io/kubernetes/pkg/proxy/apis/config"
	"k8s.io/kubernetes/pkg/proxy/metrics"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestSyncIsCountedWhereKubeProxyCounts: a sync is counted where dashboards for kube-proxy look.
func TestSyncIsCountedWhereKubeProxyCounts(t *testing.T) {
	metrics.RegisterMetrics(kubeproxyconfig.ProxyModeIPVS)
	f := &family{name: corev1.IPv6Protocol}
	f.tried(time.Now())
	f.recordLatency(map[types.NamespacedName][]time.Time{{Namespace: "default", Name: "web"}: {time.Now(), time.Now()}})
	got := testenv.Must(legacyregistry.DefaultGatherer.Gather())(t)
	counts := map[string]uint64{}
	for _, of := range got {
		for _, m := range of.GetMetric() {
			if len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == string(f.name) {
				counts[of.GetName()] += m.GetHistogram().GetSampleCount() + uint64(m.GetGauge().GetValue())
			}
		}
	}
	if counts["kubeproxy_sync_proxy_rules_duration_seconds"] == 0 || counts["kubeproxy_network_programming_duration_seconds"] < 2 ||
		counts["kubeproxy_sync_proxy_rules_last_timestamp_seconds"] == 0 {
		t.Errorf("counted: %v", counts)
	}
}
