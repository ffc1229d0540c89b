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
	// measureEvery is how often cAdvisor measures each cgroup without being asked. It adds a random time of up to the
	// same length. It keeps two minutes, so that there are always two points. Upstream's ten seconds were a seventh of
	// the processor time of a node with three pods at rest (docs/adr/0040).
	measureEvery = 30 * time.Second
	// oldestStats limits the age of figures that a client gets. Older ones are measured again while the client waits.
	oldestStats = 10 * time.Second
)

// measuredStats is cAdvisor for clients that ask for figures. Upstream gives them the last measured ones.
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

// statsFieldPaths are the paths of the fields with a kubelet's cAdvisor: for /metrics/cadvisor, for cgroups, and for
// pods. Upstream has no function that returns them.
var statsFieldPaths = [][]string{{"cadvisor"}, {"StatsProvider", "cadvisor"}, {"StatsProvider", "containerStatsProvider", "cadvisor"}}

// measureWhenAsked makes a kubelet that is not running yet use measuredStats. After an error the kubelet is unchanged.
func measureWhenAsked(kubelet any) error {
	var all []*cadvisor.Interface
	for _, way := range statsFieldPaths {
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
