// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	upstream "k8s.io/kubernetes/pkg/kubelet"
	"k8s.io/kubernetes/pkg/kubelet/volumemanager"
	"k8s.io/kubernetes/pkg/kubelet/volumemanager/populator"
	volumeutil "k8s.io/kubernetes/pkg/volume/util"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// volumesPause is how long the two loops of upstream's volume manager pause between two rounds. Upstream has them
	// pause for volumesUsual, which was most of the time that a pod takes to start (docs/adr/0040).
	volumesPause = 10 * time.Millisecond
	// volumesUsual is the time between two rounds while a wait lasts longer than volumesFirst, and for a while after
	// it.
	volumesUsual = 100 * time.Millisecond
	// volumesRest is the time between two rounds while no pod waits for volumes. Upstream's pace was a third of all
	// that woke a node at rest (docs/adr/0040).
	volumesRest = 2 * time.Second
	// volumesAfter is for how long the loops keep upstream's pace after a wait: the ConfigMaps and Secrets of a pod
	// that runs are written again. After a wait for mounts it is volumesLong, since a device is unmounted after its
	// volumes.
	volumesAfter = 500 * time.Millisecond
	volumesLong  = 3 * time.Second
	// volumesAtOnce is what a wait takes at most where nothing was to be mounted or unmounted.
	volumesAtOnce = 50 * time.Millisecond
	// volumesStart is how long the loops keep upstream's pace at first: volumes of an earlier run are reconstructed.
	volumesStart = time.Minute
	// volumesFirst is for how long after its beginning a wait has the loops run with volumesPause alone. It polls every
	// volumesStep until then; upstream polls every 300 ms. Most volumes are directories, which are made within
	// milliseconds. A pod that waits for longer, for a ConfigMap that is missing, costs no more than with upstream's
	// pace.
	volumesFirst = time.Second
	volumesStep  = 5 * time.Millisecond
	// volumesSecond is how much later the loop that mounts is woken than the one that finds out what is to be mounted.
	volumesSecond = 10 * time.Millisecond
)

// restingVolumes is upstream's volume manager with loops that rest while no pod of the node waits for volumes to be
// mounted or unmounted. The kubelet waits for these by the methods below, before a pod's containers start and after
// they have ended; so the first call wakes the loops, and they keep upstream's pace until the last one has returned.
type restingVolumes struct {
	volumemanager.VolumeManager
	pace *volumePace
}

// WaitForAttachAndMount implements volumemanager.VolumeManager.
func (m restingVolumes) WaitForAttachAndMount(ctx context.Context, pod *v1.Pod) error {
	defer m.pace.wait()()
	mounts, devices, _ := volumeutil.GetPodVolumeNames(pod, false)
	m.first(ctx, func() bool {
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
	m.first(ctx, func() bool { return len(m.GetMountedVolumesForPod(volumeutil.GetUniquePodName(pod))) == 0 })
	return m.VolumeManager.WaitForUnmount(ctx, pod)
}

// WaitForAllPodsUnmount implements volumemanager.VolumeManager.
func (m restingVolumes) WaitForAllPodsUnmount(ctx context.Context, pods []*v1.Pod) error {
	defer m.pace.wait()()
	return m.VolumeManager.WaitForAllPodsUnmount(ctx, pods)
}

// first returns when done does, or volumesFirst later.
func (m restingVolumes) first(ctx context.Context, done func() bool) {
	ctx, cancel := context.WithTimeout(ctx, volumesFirst)
	defer cancel()
	for !done() && ctx.Err() == nil {
		timers.Sleep(ctx, volumesStep)
	}
}

// volumePace holds both loops up while there is nothing to hurry for.
type volumePace struct {
	mu      sync.Mutex
	waiting int           // calls that wait for volumes
	fast    time.Time     // while a call waits: no pause but volumesPause until then
	until   time.Time     // upstream's pace until then
	woken   chan struct{} // closed and replaced when there is something to hurry for
}

func newVolumePace() *volumePace {
	return &volumePace{until: time.Now().Add(volumesStart), woken: make(chan struct{})}
}

// wait wakes the loops. They stay awake until the function that it returns is called, and a while longer.
func (p *volumePace) wait() (done func()) {
	began := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting++
	p.fast = began.Add(volumesFirst)
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

// wakeFor wakes the loops. mu is held.
func (p *volumePace) wakeFor(d time.Duration) {
	if until := time.Now().Add(d); until.After(p.until) {
		p.until = until
	}
	close(p.woken)
	p.woken = make(chan struct{})
}

// pass is called by a loop on each of its rounds, and returns when it is to go on. At rest both loops go on at the same
// moment, so that the process wakes once; where a wait woke them, a loop goes on so much later.
func (p *volumePace) pass(later time.Duration) {
	p.mu.Lock()
	now, woken := time.Now(), p.woken
	waiting, fast, until := p.waiting > 0, p.fast, p.until
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
		time.Sleep(later) // the other loop has no event that says it has been round
	case <-timer.C:
	}
}

// pacedPods are the pods that the loop of desired volumes goes through. It asks for them first on each round, with
// nothing locked.
type pacedPods struct {
	populator.PodManager
	pace *volumePace
}

// GetPods implements populator.PodManager.
func (p pacedPods) GetPods() []*v1.Pod {
	p.pace.pass(0)
	return p.PodManager.GetPods()
}

// Where a kubelet has its volume manager, and that one what its loops ask first on each round and how long they pause.
// No function of upstream's leads there.
var (
	volumesAt  = []string{"volumeManager"}
	podsAt     = []string{"volumeManager", "desiredStateOfWorldPopulator", "podManager"}
	hasAddedAt = []string{"volumeManager", "reconciler", "populatorHasAddedPods"}
	pausesAt   = [][]string{
		{"volumeManager", "desiredStateOfWorldPopulator", "loopSleepDuration"},
		{"volumeManager", "reconciler", "loopSleepDuration"},
	}
)

// restVolumes gives a kubelet that is not running yet restingVolumes. After an error it is as it was.
func restVolumes(kubelet any) error {
	pods, err := kubecompat.Field[populator.PodManager](kubelet, podsAt)
	if err != nil {
		return err
	}
	hasAdded, err := kubecompat.Field[func() bool](kubelet, hasAddedAt)
	if err != nil {
		return err
	}
	volumes, err := kubecompat.Field[volumemanager.VolumeManager](kubelet, volumesAt)
	if err != nil {
		return err
	}
	var pauses []*time.Duration
	for _, way := range pausesAt {
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
		pace.pass(volumesSecond)
		return ask()
	}
	*volumes = restingVolumes{*volumes, pace}
	return nil
}

// resting is restVolumes for upstream's list of what is done with a new kubelet.
func resting(failed func(error)) upstream.Option {
	return func(k *upstream.Kubelet) {
		if err := restVolumes(k); err != nil {
			failed(err)
		}
	}
}
