// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"time"

	cadvisorapi "github.com/google/cadvisor/lib/model"
	"k8s.io/kubernetes/pkg/kubelet/cadvisor"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

const (
	// measureEvery is how often cAdvisor measures each cgroup by itself; it adds a random part of up to as much. It
	// remembers two minutes, so that there are always two points. Upstream's ten seconds were a seventh of what a node
	// with three pods does at rest (docs/adr/0040).
	measureEvery = 30 * time.Second
	// oldestStats is how old figures of a client may be: older ones are measured again while it waits.
	oldestStats = 10 * time.Second
)

// measuredStats is cAdvisor for those who ask for figures. Upstream gives them what was measured last.
type measuredStats struct{ cadvisor.Interface }

// ContainerInfoV2 implements cadvisor.Interface.
func (s measuredStats) ContainerInfoV2(name string, o cadvisorapi.RequestOptions) (map[string]cadvisorapi.ContainerInfo, error) {
	return s.Interface.ContainerInfoV2(name, measured(o))
}

// GetRequestedContainersInfo implements cadvisor.Interface.
func (s measuredStats) GetRequestedContainersInfo(name string,
	o cadvisorapi.RequestOptions) (map[string]*cadvisorapi.ContainerInfo, error) {
	return s.Interface.GetRequestedContainersInfo(name, measured(o))
}

func measured(o cadvisorapi.RequestOptions) cadvisorapi.RequestOptions {
	if o.MaxAge == nil {
		o.MaxAge = ptr.To(oldestStats)
	}
	return o
}

// statsAt is where a kubelet has cAdvisor: for /metrics/cadvisor, for cgroups, and for pods. No function of upstream's
// leads there.
var statsAt = [][]string{{"cadvisor"}, {"StatsProvider", "cadvisor"}, {"StatsProvider", "containerStatsProvider", "cadvisor"}}

// measureWhenAsked gives a kubelet that is not running yet measuredStats. After an error it is as it was.
func measureWhenAsked(kubelet any) error {
	var all []*cadvisor.Interface
	for _, way := range statsAt {
		at, err := kubecompat.Field[cadvisor.Interface](kubelet, way)
		if err != nil {
			return err
		}
		all = append(all, at)
	}
	for _, at := range all {
		*at = measuredStats{*at}
	}
	return nil
}
