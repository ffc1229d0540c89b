// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/cm"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

// cgroupsEvery is how often the kubelet searches for cgroups of pods that it does not know, to remove them. Upstream
// does so every two seconds and in each hierarchy of cgroup v1. The cgroup of a pod that ends is removed with the pod.
const cgroupsEvery = 10 * time.Second

// rareCgroups lets the kubelet search for the cgroups of pods at most once every cgroupsEvery. A call before that gets
// an empty list. Only the removal of unknown cgroups uses it. Other parts of the kubelet use the manager of upstream.
type rareCgroups struct {
	cm.ContainerManager
	nextSearch *time.Time // without a lock: only one loop of the kubelet uses it
}

// NewPodContainerManager implements cm.ContainerManager.
func (c rareCgroups) NewPodContainerManager() cm.PodContainerManager {
	return rarePodCgroups{c.ContainerManager.NewPodContainerManager(), c}
}

type rarePodCgroups struct {
	cm.PodContainerManager
	limits rareCgroups
}

// GetAllPodsFromCgroups implements cm.PodContainerManager.
func (p rarePodCgroups) GetAllPodsFromCgroups(logger klog.Logger) (map[types.UID]cm.CgroupName, error) {
	if time.Now().Before(*p.limits.nextSearch) {
		return nil, nil
	}
	*p.limits.nextSearch = time.Now().Add(cgroupsEvery)
	return p.PodContainerManager.GetAllPodsFromCgroups(logger)
}

// cgroupsFieldPath is the path of the field with a kubelet's manager of cgroups. Upstream has no function that returns
// it.
var cgroupsFieldPath = []string{"containerManager"}

// sweepRarely makes a kubelet that is not running yet use rareCgroups. After an error the kubelet is unchanged.
func sweepRarely(kubelet any) error {
	cgroups, err := kubecompat.Field[cm.ContainerManager](kubelet, cgroupsFieldPath)
	if err != nil {
		return err
	}
	*cgroups = rareCgroups{*cgroups, new(time.Time)}
	return nil
}
