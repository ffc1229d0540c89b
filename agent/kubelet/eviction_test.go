// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	"k8s.io/kubernetes/pkg/kubelet/eviction"
	evictionapi "k8s.io/kubernetes/pkg/kubelet/eviction/api"
	"k8s.io/kubernetes/pkg/kubelet/server/stats"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// someNode has so much memory and disk left, and one pod.
type someNode struct {
	stats.Provider
	memory, disk uint64
	pod          v1.Pod
}

const nodeSize = 1 << 30

func (n *someNode) GetNode(context.Context) (*v1.Node, error)   { return &v1.Node{}, nil }
func (n *someNode) GetNodeConfig() cm.NodeConfig                { return cm.NodeConfig{} }
func (n *someNode) GetPodCgroupRoot() string                    { return "/kubepods" }
func (n *someNode) GetPods() []*v1.Pod                          { return []*v1.Pod{&n.pod} }
func (n *someNode) RlimitStats() (*statsapi.RlimitStats, error) { return nil, nil }
func (n *someNode) RootFsStats() (*statsapi.FsStats, error)     { return n.fs(), nil }
func (n *someNode) ImageFsStats(context.Context) (i, c *statsapi.FsStats, e error) {
	return n.fs(), n.fs(), nil
}

func (n *someNode) fs() *statsapi.FsStats {
	return &statsapi.FsStats{Time: metav1.Now(), AvailableBytes: &n.disk, CapacityBytes: ptr.To[uint64](nodeSize)}
}

func (n *someNode) GetCgroupStats(context.Context, string, bool) (*statsapi.ContainerStats, *statsapi.NetworkStats, error) {
	return &statsapi.ContainerStats{Memory: &statsapi.MemoryStats{
		Time: metav1.Now(), AvailableBytes: &n.memory, WorkingSetBytes: ptr.To(nodeSize - n.memory),
	}}, nil, nil
}

func (n *someNode) ListPodStatsAndUpdateCPUNanoCoreUsage(context.Context) ([]statsapi.PodStats, error) {
	return []statsapi.PodStats{{PodRef: statsapi.PodReference{Name: "one"}}}, nil
}

// Upstream's eviction manager gets pods' figures when a threshold is met, or a pod may be evicted for what it uses
// itself, and the node's in any case.
func TestEvictionHasPodsFiguresWhenItEvicts(t *testing.T) {
	const mega = 1 << 20
	threshold := func(s evictionapi.Signal, least, reclaim int64) evictionapi.Threshold {
		th := evictionapi.Threshold{Signal: s, Operator: evictionapi.OpLessThan,
			Value: evictionapi.ThresholdValue{Quantity: resource.NewQuantity(least, resource.BinarySI)}}
		if reclaim > 0 {
			th.MinReclaim = &evictionapi.ThresholdValue{Quantity: resource.NewQuantity(reclaim, resource.BinarySI)}
		}
		return th
	}
	some := resource.MustParse("1Gi")
	limited := v1.ResourceRequirements{Limits: v1.ResourceList{v1.ResourceEphemeralStorage: some}}
	for name, c := range map[string]struct {
		node someNode
		want int
	}{
		"nothing":          {someNode{memory: 500 * mega, disk: 500 * mega}, 0},
		"memory":           {someNode{memory: 99 * mega, disk: 500 * mega}, 1},
		"disk":             {someNode{memory: 500 * mega, disk: 49 * mega}, 1},
		"disk, to reclaim": {someNode{memory: 500 * mega, disk: 59 * mega}, 1},
		"disk, reclaimed":  {someNode{memory: 500 * mega, disk: 61 * mega}, 0},
		"a volume's limit": {someNode{memory: 500 * mega, disk: 500 * mega, pod: v1.Pod{Spec: v1.PodSpec{Volumes: []v1.Volume{
			{VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{SizeLimit: &some}}},
		}}}}, 1},
		"a volume": {someNode{memory: 500 * mega, disk: 500 * mega, pod: v1.Pod{Spec: v1.PodSpec{Volumes: []v1.Volume{
			{VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
		}}}}, 0},
		"a container's limit": {someNode{memory: 500 * mega, disk: 500 * mega, pod: v1.Pod{Spec: v1.PodSpec{
			Containers: []v1.Container{{}, {Resources: limited}},
		}}}, 1},
		"an init container's limit": {someNode{memory: 500 * mega, disk: 500 * mega, pod: v1.Pod{Spec: v1.PodSpec{
			InitContainers: []v1.Container{{Resources: limited}}, Containers: []v1.Container{{}},
		}}}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			m, _ := eviction.NewManager(stats.NewSummaryProvider(t.Context(), &c.node), eviction.Config{Thresholds: []evictionapi.Threshold{
				threshold(evictionapi.SignalMemoryAvailable, 100*mega, 0), threshold(evictionapi.SignalNodeFsAvailable, 50*mega, 10*mega),
			}}, nil, nil, nil, nil, nil, clock.RealClock{}, true)
			k := &struct{ evictionManager eviction.Manager }{m}
			testenv.NoError(t, evictByNode(t.Context(), k, &c.node))
			provider := testenv.Must(kubecompat.Field[stats.SummaryProvider](k, evictionStatsFieldPath))(t)
			s := testenv.Must((*provider).Get(t.Context(), true))(t)
			testenv.True(t, len(s.Pods) == c.want, "there are figures of %d pods, want %d", len(s.Pods), c.want)
			if s.Node.Memory == nil || *s.Node.Memory.AvailableBytes != c.node.memory || time.Since(s.Node.Fs.Time.Time) > time.Minute {
				t.Errorf("the node's figures: %+v", s.Node)
			}
		})
	}
}

// Upstream's kubelet still begins the ways to the eviction manager's figures as evictByNode does.
func TestWayToTheEvictionManager(t *testing.T) {
	wayBegins[eviction.Manager](t, evictionStatsFieldPath)
	testenv.Fails(t, evictByNode(t.Context(), &struct{ evictionManager int }{}, &someNode{}), "there is no eviction manager, and no error")
}
