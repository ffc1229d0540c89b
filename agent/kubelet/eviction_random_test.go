// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	"k8s.io/kubernetes/pkg/kubelet/eviction"
	evictionapi "k8s.io/kubernetes/pkg/kubelet/eviction/api"
	"k8s.io/kubernetes/pkg/kubelet/server/stats"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// wornNode is a node whose figures change all the time, in hundredths of what it has.
type wornNode struct {
	stats.Provider
	rand *rand.Rand
	pods []*v1.Pod

	mu                           sync.Mutex
	memory, disk, inodes, images uint64 // free
	processes                    int64
	used                         []uint64 // by each pod
	at                           metav1.Time
}

const hundredth = 10 << 20

func newWornNode(seed uint64) *wornNode {
	n := &wornNode{rand: rand.New(rand.NewPCG(seed, 0))}
	limit := v1.ResourceList{v1.ResourceEphemeralStorage: *resource.NewQuantity(25*hundredth, resource.BinarySI)}
	for i := range 4 {
		p := &v1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(i), UID: types.UID(fmt.Sprint(i))},
			Spec:       v1.PodSpec{Containers: []v1.Container{{Name: "c"}}},
		}
		if seed%2 == 0 && i == 0 { // half of the nodes have a pod with a limit of its own
			p.Spec.Containers[0].Resources.Limits = limit
		}
		n.pods = append(n.pods, p)
	}
	n.used = make([]uint64, len(n.pods))
	n.change()
	return n
}

// change draws other figures. No two things are short at once: upstream draws the one for which it evicts.
func (n *wornNode) change() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.at = metav1.Now()
	n.memory, n.disk, n.inodes, n.images, n.processes = 50, 50, 50, 50, 50
	short := uint64(n.rand.IntN(20))
	switch n.rand.IntN(10) {
	case 0, 1: // for longer than the grace period at times
		n.memory = short
	case 2:
		n.disk = short
	case 3:
		n.inodes = short
	case 4:
		n.images = short
	case 5:
		n.processes = int64(100 - short)
	}
	for i := range n.used {
		n.used[i] = uint64(n.rand.IntN(30))
	}
}

func (n *wornNode) GetNode(context.Context) (*v1.Node, error) { return &v1.Node{}, nil }
func (n *wornNode) GetNodeConfig() cm.NodeConfig              { return cm.NodeConfig{} }
func (n *wornNode) GetPodCgroupRoot() string                  { return "/kubepods" }
func (n *wornNode) GetPods() []*v1.Pod                        { return n.pods }

func (n *wornNode) RlimitStats() (*statsapi.RlimitStats, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &statsapi.RlimitStats{Time: n.at, MaxPID: ptr.To[int64](100), NumOfRunningProcesses: ptr.To(n.processes)}, nil
}

func (n *wornNode) RootFsStats() (*statsapi.FsStats, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fs(n.disk, n.inodes), nil
}

func (n *wornNode) ImageFsStats(context.Context) (i, c *statsapi.FsStats, e error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fs(n.images, 50), n.fs(n.images, 50), nil
}

func (n *wornNode) fs(free, inodes uint64) *statsapi.FsStats {
	return &statsapi.FsStats{
		Time: n.at, AvailableBytes: ptr.To(free * hundredth), CapacityBytes: ptr.To[uint64](100 * hundredth),
		InodesFree: ptr.To(inodes), Inodes: ptr.To[uint64](100),
	}
}

func (n *wornNode) GetCgroupStats(context.Context, string, bool) (*statsapi.ContainerStats, *statsapi.NetworkStats, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &statsapi.ContainerStats{Memory: &statsapi.MemoryStats{
		Time: n.at, AvailableBytes: ptr.To(n.memory * hundredth), WorkingSetBytes: ptr.To((100 - n.memory) * hundredth),
	}}, nil, nil
}

func (n *wornNode) ListPodStatsAndUpdateCPUNanoCoreUsage(context.Context) (all []statsapi.PodStats, _ error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, p := range n.pods {
		used := ptr.To(n.used[i] * hundredth)
		memory := &statsapi.MemoryStats{Time: n.at, WorkingSetBytes: used, UsageBytes: used}
		fs := &statsapi.FsStats{Time: n.at, UsedBytes: used, InodesUsed: ptr.To(n.used[i])}
		all = append(all, statsapi.PodStats{
			PodRef: statsapi.PodReference{Name: p.Name, UID: string(p.UID)}, Memory: memory, EphemeralStorage: fs,
			ProcessStats: &statsapi.ProcessStats{ProcessCount: ptr.To(n.used[i])},
			Containers: []statsapi.ContainerStats{{Name: "c", Memory: memory, Rootfs: fs,
				Logs: &statsapi.FsStats{Time: n.at, UsedBytes: ptr.To[uint64](0)}}},
		})
	}
	return all, nil
}

// HasDedicatedImageFs implements eviction.DiskInfoProvider.
func (n *wornNode) HasDedicatedImageFs(context.Context) (bool, error) {
	return n.rand.IntN(2) == 0, nil
}

// HasDedicatedContainerFs implements eviction.DiskInfoProvider.
func (n *wornNode) HasDedicatedContainerFs(context.Context) (bool, error) { return false, nil }

// DeleteUnusedImages implements eviction.ImageGC.
func (n *wornNode) DeleteUnusedImages(context.Context) error { return nil }

// DeleteAllUnusedContainers implements eviction.ContainerGC.
func (n *wornNode) DeleteAllUnusedContainers(context.Context) error { return nil }

// wornThresholds are hard and soft, with and without something to reclaim.
func wornThresholds() (all []evictionapi.Threshold) {
	for _, t := range []struct {
		signal         evictionapi.Signal
		least, reclaim float32
		grace          time.Duration
	}{
		{evictionapi.SignalMemoryAvailable, 0.10, 0.05, 15 * time.Second},
		{evictionapi.SignalNodeFsAvailable, 0.10, 0.05, 0},
		{evictionapi.SignalNodeFsInodesFree, 0.05, 0, 0},
		{evictionapi.SignalImageFsAvailable, 0.10, 0, 0},
		{evictionapi.SignalPIDAvailable, 0.10, 0, 0},
	} {
		th := evictionapi.Threshold{
			Signal: t.signal, Operator: evictionapi.OpLessThan, Value: evictionapi.ThresholdValue{Percentage: t.least}, GracePeriod: t.grace,
		}
		if t.reclaim > 0 {
			th.MinReclaim = &evictionapi.ThresholdValue{Percentage: t.reclaim}
		}
		all = append(all, th)
	}
	return all
}

// evictions runs upstream's manager on a node for an hour, and returns what it did and said.
func evictions(t *testing.T, seed uint64, byNode bool) (out []string) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		n := newWornNode(seed)
		began := time.Now()
		kill := func(p *v1.Pod, _ bool, grace *int64, fn func(*v1.PodStatus)) error {
			var s v1.PodStatus
			fn(&s)
			out = append(out, fmt.Sprintf("%v: %s with %d s: %s", time.Since(began), p.Name, *grace, s.Message))
			return nil
		}
		m, _ := eviction.NewManager(stats.NewSummaryProvider(ctx, n), eviction.Config{
			Thresholds: wornThresholds(), PressureTransitionPeriod: time.Minute, MaxPodGracePeriodSeconds: 5,
		}, kill, n, n, &record.FakeRecorder{}, &v1.ObjectReference{}, clock.RealClock{}, true)
		if byNode {
			testenv.NoError(t, evictByNode(ctx, &struct{ evictionManager eviction.Manager }{m}, n))
		}
		m.Start(ctx, n, func() []*v1.Pod { return slices.Clone(n.pods) }, func(*v1.Pod) bool { return true }, 10*time.Second)
		for range 360 { // fake time: neither sleep takes any; the figures change half a second before upstream reads them
			time.Sleep(9500 * time.Millisecond)
			n.change()
			time.Sleep(500 * time.Millisecond)
			synctest.Wait()
			out = append(out, fmt.Sprintf("%v: memory %v, disk %v, processes %v", time.Since(began),
				m.IsUnderMemoryPressure(), m.IsUnderDiskPressure(), m.IsUnderPIDPressure()))
		}
		stop()
		time.Sleep(time.Minute) // fake time: its loop ends
	})
	return out
}

// TestEvictionMatchesUpstream: with the node's figures alone while nothing is short, upstream's manager evicts the same
// pods, at the same moments and for the same reasons, and reports the same pressure.
func TestEvictionMatchesUpstream(t *testing.T) {
	for seed := range uint64(20) {
		want, got := evictions(t, seed, false), evictions(t, seed, true)
		if !slices.Equal(got, want) {
			for i := range want {
				if i >= len(got) || got[i] != want[i] {
					t.Fatalf("seed %d: got %q, upstream %q", seed, slices.Concat(got[i:], []string{""})[0], want[i])
				}
			}
			t.Fatalf("seed %d: %d of upstream's %d events", seed, len(got), len(want))
		}
		t.Logf("seed %d: %d evictions", seed, len(want)-360)
	}
}
