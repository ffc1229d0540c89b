// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"slices"
	_ "unsafe" // for go:linkname

	"github.com/go-logr/logr"
	v1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	evictionapi "k8s.io/kubernetes/pkg/kubelet/eviction/api"
	"k8s.io/kubernetes/pkg/kubelet/server/stats"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

// evictionStats is what upstream's eviction manager decides by, every ten seconds. It needs pods' figures only when it
// evicts, and upstream makes them each time: cAdvisor reads each container's limits, and each shim reads its cgroups.
type evictionStats struct {
	stats.SummaryProvider                       // with pods
	node                  stats.SummaryProvider // without
	pods                  func() []*v1.Pod
	thresholds            *[]evictionapi.Threshold
}

// Get implements stats.SummaryProvider. Without a threshold that is met, and without a pod that has a limit of its own,
// nothing is evicted.
func (s evictionStats) Get(ctx context.Context, update bool) (*statsapi.Summary, error) {
	if !slices.ContainsFunc(s.pods(), limitsStorage) {
		node, err := s.node.Get(ctx, update)
		if err != nil || !anyMet(*s.thresholds, node) {
			return node, err
		}
	}
	return s.SummaryProvider.Get(ctx, update)
}

// limitsStorage says whether a pod is evicted when it uses more storage than it says itself.
func limitsStorage(p *v1.Pod) bool {
	if _, ok := resourcehelper.PodLimits(p, resourcehelper.PodResourcesOptions{})[v1.ResourceEphemeralStorage]; ok {
		return true
	}
	return slices.ContainsFunc(p.Spec.Volumes, func(v v1.Volume) bool { return v.EmptyDir != nil && v.EmptyDir.SizeLimit != nil })
}

// anyMet says whether upstream finds that any of the thresholds is met, or less is free than it reclaims then.
func anyMet(thresholds []evictionapi.Threshold, s *statsapi.Summary) bool {
	observed, _ := makeSignalObservations(logr.Discard(), s)
	return len(thresholdsMet(logr.Discard(), thresholds, observed, true)) > 0
}

// signalObservations is upstream's map of the same name, which is handed from the one function to the other.
type signalObservations *struct{}

// Upstream's functions by which its manager decides. There is no exported way to them; a test fails when they move.

//go:linkname makeSignalObservations k8s.io/kubernetes/pkg/kubelet/eviction.makeSignalObservations
func makeSignalObservations(logr.Logger, *statsapi.Summary) (signalObservations, func(*v1.Pod) (statsapi.PodStats, bool))

//go:linkname thresholdsMet k8s.io/kubernetes/pkg/kubelet/eviction.thresholdsMet
func thresholdsMet(logr.Logger, []evictionapi.Threshold, signalObservations, bool) []evictionapi.Threshold

// nodeStats is a kubelet that has no pods, for those who ask about the node.
type nodeStats struct{ stats.Provider }

// ListPodStatsAndUpdateCPUNanoCoreUsage implements stats.Provider.
func (nodeStats) ListPodStatsAndUpdateCPUNanoCoreUsage(context.Context) ([]statsapi.PodStats, error) {
	return nil, nil
}

// Where a kubelet's eviction manager has what it decides by. No function of upstream's leads there.
var (
	evictionStatsAt = []string{"evictionManager", "summaryProvider"}
	thresholdsAt    = []string{"evictionManager", "config", "Thresholds"}
)

// evictByNode gives the eviction manager of a kubelet that is not running yet evictionStats. of is that kubelet. After
// an error it is as it was.
func evictByNode(ctx context.Context, kubelet any, of stats.Provider) error {
	summary, err := kubecompat.Field[stats.SummaryProvider](kubelet, evictionStatsAt)
	if err != nil {
		return err
	}
	thresholds, err := kubecompat.Field[[]evictionapi.Threshold](kubelet, thresholdsAt)
	if err != nil {
		return err
	}
	*summary = evictionStats{*summary, stats.NewSummaryProvider(ctx, nodeStats{of}), of.GetPods, thresholds}
	return nil
}
