// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
	"k8s.io/kubernetes/pkg/kubelet/config"
	kubepod "k8s.io/kubernetes/pkg/kubelet/pod"
	"k8s.io/kubernetes/pkg/kubelet/volumemanager"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/util/hostutil"
	"k8s.io/kubernetes/pkg/volume/util/volumepathhandler"
	"k8s.io/mount-utils"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// countedPods are a kubelet's pods, and count how often they are asked for.
type countedPods struct {
	kubepod.Manager
	asked atomic.Int64
}

func (p *countedPods) GetPods() []*v1.Pod {
	p.asked.Add(1)
	return p.Manager.GetPods()
}

type noPodEnds struct{}

func (noPodEnds) ShouldPodContainersBeTerminating(types.UID) bool { return false }
func (noPodEnds) ShouldPodRuntimeBeRemoved(types.UID) bool        { return false }

// rounds are those of upstream's two loops.
type rounds struct {
	pods       *countedPods
	reconciled atomic.Int64
}

// during returns how many rounds the loops make in a time.
func (r *rounds) during(d time.Duration) (populated, reconciled int64) {
	populated, reconciled = r.pods.asked.Load(), r.reconciled.Load()
	time.Sleep(d)
	return r.pods.asked.Load() - populated, r.reconciled.Load() - reconciled
}

// someKubelet has what restVolumes changes, where upstream's kubelet has it.
type someKubelet struct {
	podManager    kubepod.Manager
	volumeManager volumemanager.VolumeManager
}

// runVolumes runs upstream's volume manager where a kubelet has it, without plugins: no volume is ever mounted.
func runVolumes(t *testing.T, ctx context.Context) (*someKubelet, *rounds) {
	t.Helper()
	plugins := &volume.VolumePluginMgr{}
	testenv.NoError(t, plugins.InitPlugins(nil, nil, nil))
	k := &someKubelet{podManager: kubepod.NewBasicPodManager()}
	pods := &countedPods{Manager: k.podManager}
	k.volumeManager = volumemanager.NewVolumeManager(true, "node", pods, noPodEnds{}, fake.NewClientset(), plugins,
		mount.NewFakeMounter(nil), hostutil.NewFakeHostUtil(nil), t.TempDir(), record.NewFakeRecorder(1000), volumepathhandler.NewBlockVolumePathHandler(), nil, 0)
	r := &rounds{pods: pods}
	hasAdded := testenv.Must(kubecompat.Field[func() bool](k, hasAddedFieldPath))(t)
	ask := *hasAdded
	*hasAdded = func() bool {
		r.reconciled.Add(1)
		return ask()
	}
	testenv.NoError(t, restVolumes(k))
	go k.volumeManager.Run(ctx, config.NewSourcesReady(func(sets.Set[string]) bool { return true }))
	return k, r
}

// podWithVolume has a volume that cannot be mounted.
func podWithVolume() *v1.Pod {
	p := &v1.Pod{}
	p.Name, p.Namespace, p.UID = "pod", "default", "uid"
	p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}
	p.Spec.Containers = []v1.Container{{Name: "c", VolumeMounts: []v1.VolumeMount{{Name: "v", MountPath: "/v"}}}}
	return p
}

// No sleep of this file takes any time: its tests run in bubbles of fake time.

// TestVolumeLoopsRestBetweenPods: the volume manager's loops hurry when a pod begins to wait for its volumes. They keep
// upstream's pace at first, while a pod goes on waiting and a moment longer, and rest otherwise.
func TestVolumeLoopsRestBetweenPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer time.Sleep(10 * time.Second) // until the loops have seen that ctx is done
		defer cancel()
		k, r := runVolumes(t, ctx)
		pace := func(when string, within time.Duration, least, most int64) {
			t.Helper()
			if p, c := r.during(within); p < least || p > most || c < least || c > most {
				t.Errorf("%s: %d and %d rounds in %s, want %d to %d", when, p, c, within, least, most)
			}
		}
		time.Sleep(time.Second)
		pace("after the start", 10*time.Second, 98, 101)
		time.Sleep(volumesStart)
		pace("at rest", time.Minute, 29, 31)
		time.Sleep(timers.Until(volumesRest) + 300*time.Millisecond) // within a rest: the process has moments of its own

		pod := podWithVolume() // whose volume cannot be mounted
		k.podManager.AddPod(pod)
		populated, reconciled := r.pods.asked.Load(), r.reconciled.Load()
		ended := make(chan error)
		go func() { ended <- k.volumeManager.WaitForAttachAndMount(ctx, pod) }()
		synctest.Wait()
		if p, c := r.pods.asked.Load()-populated, r.reconciled.Load()-reconciled; p != 1 || c != 0 {
			t.Errorf("when a pod begins to wait: %d and %d rounds at once", p, c)
		}
		time.Sleep(volumesSecond)
		synctest.Wait()
		if p, c := r.pods.asked.Load()-populated, r.reconciled.Load()-reconciled; p < 1 || c != 1 {
			t.Errorf("a moment after a pod has begun to wait: %d and %d rounds", p, c)
		}
		testenv.Fails(t, <-ended, "the volume was mounted, by no plugin")
		time.Sleep(volumesLong + volumesRest)

		other := podWithVolume() // of which the loops do not know: nothing ever comes of its volumes
		other.UID = "other"
		waiting, stop := context.WithCancel(ctx)
		go func() { ended <- k.volumeManager.WaitForAttachAndMount(waiting, other) }()
		synctest.Wait()
		pace("when a pod begins to wait", volumesFirst, 98, 101)
		pace("while a pod waits", 5*time.Second, 49, 51)
		stop()
		testenv.Fails(t, <-ended, "the volume was mounted, by no plugin")
		pace("after a pod has waited long", volumesLong, 29, 31)
		time.Sleep(volumesRest)
		pace("at rest again", time.Minute, 29, 31)

		k.podManager.RemovePod(pod)
		testenv.Check(t, k.volumeManager.WaitForUnmount(ctx, pod))
		pace("after a pod had nothing to wait for", volumesAfter, 4, 6)
		time.Sleep(volumesRest)
		pace("at rest at last", time.Minute, 29, 31)
	})
}

// A pod that comes while the loops rest is looked at without any time passing.
func TestNewPodWakesVolumeLoops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newVolumePace()
		time.Sleep(volumesStart + 300*time.Millisecond)
		began := time.Now()
		passed := make(chan time.Duration)
		go func() {
			p.awaitRound(volumesSecond)
			passed <- time.Since(began)
		}()
		synctest.Wait()
		done := p.wait()
		testenv.Equal(t, <-passed, volumesSecond, "a loop slept for another")
		p.awaitRound(volumesSecond)
		testenv.Equal(t, time.Since(began), volumesSecond, "a loop rests while a pod waits:")
		done()
		time.Sleep(volumesAfter)
		p.awaitRound(0)
		if rested := time.Since(began) - volumesSecond - volumesAfter; rested <= 0 || rested > volumesRest {
			t.Errorf("a loop rested for %s", rested)
		}
	})
}

// TestVolumesNeverRestForLong: whatever pods begin and end to wait for, and however long a round of a loop takes, a
// loop goes round at least at upstream's pace while one waits, goes round once more after each beginning and after each
// end, and rests no longer than it says at any time.
func TestVolumesNeverRestForLong(t *testing.T) {
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			random := func(most time.Duration) time.Duration { return time.Duration(rnd.Int64N(int64(most))) }
			const longest = 300 * time.Millisecond // of a round
			p := newVolumePace()
			ctx, cancel := context.WithCancel(t.Context())
			var running sync.WaitGroup
			var mu sync.Mutex
			var rounds [2][]time.Time
			for i, later := range []time.Duration{0, volumesSecond} {
				takes := make([]time.Duration, 97)
				for i := range takes {
					if rnd.IntN(4) == 0 {
						takes[i] = random(longest)
					}
				}
				running.Go(func() {
					for n := 0; ctx.Err() == nil; n++ {
						p.awaitRound(later)
						mu.Lock()
						rounds[i] = append(rounds[i], time.Now())
						mu.Unlock()
						time.Sleep(takes[n%len(takes)] + volumesPause) // fake time
					}
				})
			}
			type wait struct{ began, ended time.Time }
			var waits []wait
			for range 1 + rnd.IntN(40) {
				time.Sleep(random(20 * time.Second)) // fake time
				var pods sync.WaitGroup
				for range 1 + rnd.IntN(3) {
					begins, lasts := random(2*time.Second), random(3*time.Second)
					if rnd.IntN(2) == 0 {
						lasts = 0 // its volumes are mounted
					}
					pods.Go(func() {
						time.Sleep(begins) // fake time
						w := wait{began: time.Now()}
						done := p.wait()
						time.Sleep(lasts) // fake time
						done()
						w.ended = time.Now()
						mu.Lock()
						defer mu.Unlock()
						waits = append(waits, w)
					})
				}
				pods.Wait()
			}
			time.Sleep(time.Minute) // fake time
			cancel()
			running.Wait()
			for i, later := range []time.Duration{0, volumesSecond} {
				after := func(at time.Time) time.Duration { // until the first round from then on
					for _, r := range rounds[i] {
						if !r.Before(at) {
							return r.Sub(at)
						}
					}
					return 0 // it had ended by then
				}
				for n, r := range rounds[i][1:] {
					if rested := r.Sub(rounds[i][n]); rested > volumesRest+later+volumesPause+longest {
						t.Errorf("seed %d: loop %d rested for %s", seed, i, rested)
					}
				}
				for _, w := range waits {
					for at := w.began; !at.After(w.ended); at = at.Add(volumesUsual) {
						if d := after(at); d > later+volumesUsual+longest {
							t.Errorf("seed %d: loop %d goes round %s after a pod has begun to wait, %s later", seed, i, at.Sub(w.began), d)
						}
					}
					if d := after(w.ended); d > later+volumesUsual+longest {
						t.Errorf("seed %d: loop %d goes round %s after a pod had waited", seed, i, d)
					}
				}
			}
		})
	}
}

// Upstream's kubelet still begins the ways as restVolumes does; the rest of them is in TestVolumeLoopsRestBetweenPods.
func TestWayToTheVolumeManager(t *testing.T) {
	wayBegins[volumemanager.VolumeManager](t, volumesFieldPath)
	testenv.Fails(t, restVolumes(&struct{ volumeManager int }{}), "there is no volume manager, and no error")
}
