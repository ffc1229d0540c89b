// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/kubelet/volumemanager"
	"k8s.io/kubernetes/pkg/kubelet/volumemanager/populator"
	volumeutil "k8s.io/kubernetes/pkg/volume/util"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// volumesPause is the pause between two rounds of each loop of upstream's volume manager. Upstream's pause is
	// volumesUsual, which was most of the time that a pod takes to start (docs/adr/0040).
	volumesPause = 10 * time.Millisecond
	// volumesUsual is the time between two rounds after the first volumesFirst of a wait, and for a while after the
	// wait.
	volumesUsual = 100 * time.Millisecond
	// volumesRest is the time between two rounds while no pod waits for volumes. Upstream's interval caused a third of
	// all wake-ups of a node at rest (docs/adr/0040).
	volumesRest = 2 * time.Second
	// volumesAfter is how long the loops keep upstream's interval after a wait: the ConfigMaps and Secrets of a running
	// pod are written again. After a wait for mounts it is volumesLong, since a device is unmounted after its volumes.
	volumesAfter = 500 * time.Millisecond
	volumesLong  = 3 * time.Second
	// volumesAtOnce is the longest duration of a wait without mounts and unmounts.
	volumesAtOnce = 50 * time.Millisecond
	// volumesStart is how long the loops keep upstream's interval at the start: volumes of an earlier run are
	// reconstructed.
	volumesStart = time.Minute
	// volumesFirst is how long after the beginning of a wait the loops run with volumesPause alone. The wait polls
	// every volumesStep until then, where upstream polls every 300 ms. Most volumes are directories, which are made
	// within milliseconds. A pod that waits longer, such as for a missing ConfigMap, costs no more than with upstream's
	// interval.
	volumesFirst = time.Second
	volumesStep  = 5 * time.Millisecond
	// volumesSecond is how much later the loop that mounts is woken than the loop that finds out what to mount.
	volumesSecond = 10 * time.Millisecond
)

// restingVolumes is upstream's volume manager with loops that rest while no pod of the node waits for mounts or
// unmounts. The kubelet waits with the methods below, before a pod's containers start and after they have ended. So the
// first call wakes the loops, and they keep upstream's interval until the last call has returned.
type restingVolumes struct {
	volumemanager.VolumeManager
	pace *volumePace
}

// WaitForAttachAndMount implements volumemanager.VolumeManager.
func (m restingVolumes) WaitForAttachAndMount(ctx context.Context, pod *v1.Pod) error {
	defer m.pace.wait()()
	mounts, devices, _ := volumeutil.GetPodVolumeNames(pod, false)
	m.awaitFirst(ctx, func() bool {
		mounted := m.GetMountedVolumesForPod(volumeutil.GetUniquePodName(pod))
		for name := range mounts.Union(devices) {
			if _, ok := mounted[name]; !ok {
				return false
			}
		}
		return true
	})
	return m.VolumeManager.WaitForAttachAndMount(ctx, pod)
}

// WaitForUnmount implements volumemanager.VolumeManager.
func (m restingVolumes) WaitForUnmount(ctx context.Context, pod *v1.Pod) error {
	defer m.pace.wait()()
	m.awaitFirst(ctx, func() bool { return len(m.GetMountedVolumesForPod(volumeutil.GetUniquePodName(pod))) == 0 })
	return m.VolumeManager.WaitForUnmount(ctx, pod)
}

// WaitForAllPodsUnmount implements volumemanager.VolumeManager.
func (m restingVolumes) WaitForAllPodsUnmount(ctx context.Context, pods []*v1.Pod) error {
	defer m.pace.wait()()
	return m.VolumeManager.WaitForAllPodsUnmount(ctx, pods)
}

// awaitFirst returns when done returns true, but after volumesFirst at the latest.
func (m restingVolumes) awaitFirst(ctx context.Context, done func() bool) {
	ctx, cancel := context.WithTimeout(ctx, volumesFirst)
	defer cancel()
	for !done() && ctx.Err() == nil {
		timers.Sleep(ctx, volumesStep)
	}
}

// volumePace slows both loops while no pod waits for volumes.
type volumePace struct {
	mu           sync.Mutex
	waiting      int       // number of calls that wait for volumes
	fastestUntil time.Time // while a call waits: only volumesPause until then
	slowUntil    time.Time // upstream's interval until then
	wake         timers.Broadcast
}

func newVolumePace() *volumePace {
	return &volumePace{slowUntil: time.Now().Add(volumesStart)}
}

// wait wakes the loops. They stay awake until the returned function is called, and a while longer.
func (p *volumePace) wait() (done func()) {
	began := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting++
	p.fastestUntil = began.Add(volumesFirst)
	p.wakeFor(volumesAfter)
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.waiting--
		after := volumesAfter
		if time.Since(began) > volumesAtOnce {
			after = volumesLong
		}
		p.wakeFor(after)
	}
}

// wakeFor wakes the loops. The caller holds mu.
func (p *volumePace) wakeFor(d time.Duration) {
	if until := time.Now().Add(d); until.After(p.slowUntil) {
		p.slowUntil = until
	}
	p.wake.Send()
}

// awaitRound returns when a loop's round may begin. Each loop calls it in each round. At rest both loops continue at
// the same moment, so that the process wakes once. After a wait has woken them, a loop continues later by the given
// time.
func (p *volumePace) awaitRound(later time.Duration) {
	p.mu.Lock()
	now, woken := time.Now(), p.wake.Next()
	waiting, fast, until := p.waiting > 0, p.fastestUntil, p.slowUntil
	p.mu.Unlock()
	var pause time.Duration
	switch {
	case waiting && now.Before(fast):
		return
	case waiting || now.Before(until):
		pause = volumesUsual - volumesPause
	default:
		pause = timers.Until(volumesRest)
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-woken:
		time.Sleep(later) // the other loop has no event that shows the end of its round
	case <-timer.C:
	}
}

// pacedPods are the pods that the loop of desired volumes handles. The loop reads them at the beginning of each round,
// without holding a lock.
type pacedPods struct {
	populator.PodManager
	pace *volumePace
}

// GetPods implements populator.PodManager.
func (p pacedPods) GetPods() []*v1.Pod {
	p.pace.awaitRound(0)
	return p.PodManager.GetPods()
}

// Paths of the fields with a kubelet's volume manager, with the first function that each loop calls in a round, and
// with the loops' pauses. Upstream has no function that returns them.
var (
	volumesFieldPath  = []string{"volumeManager"}
	podsFieldPath     = []string{"volumeManager", "desiredStateOfWorldPopulator", "podManager"}
	hasAddedFieldPath = []string{"volumeManager", "reconciler", "populatorHasAddedPods"}
	pausesFieldPaths  = [][]string{
		{"volumeManager", "desiredStateOfWorldPopulator", "loopSleepDuration"},
		{"volumeManager", "reconciler", "loopSleepDuration"},
	}
)

// restVolumes makes a kubelet that is not running yet use restingVolumes. After an error the kubelet is unchanged.
func restVolumes(kubelet any) error {
	pods, err := kubecompat.Field[populator.PodManager](kubelet, podsFieldPath)
	if err != nil {
		return err
	}
	hasAdded, err := kubecompat.Field[func() bool](kubelet, hasAddedFieldPath)
	if err != nil {
		return err
	}
	volumes, err := kubecompat.Field[volumemanager.VolumeManager](kubelet, volumesFieldPath)
	if err != nil {
		return err
	}
	var pauses []*time.Duration
	for _, way := range pausesFieldPaths {
		pause, err := kubecompat.Field[time.Duration](kubelet, way)
		if err != nil {
			return err
		}
		pauses = append(pauses, pause)
	}
	pace, ask := newVolumePace(), *hasAdded
	for _, pause := range pauses {
		*pause = volumesPause
	}
	*pods = pacedPods{*pods, pace}
	*hasAdded = func() bool {
		pace.awaitRound(volumesSecond)
		return ask()
	}
	*volumes = restingVolumes{*volumes, pace}
	return nil
}
