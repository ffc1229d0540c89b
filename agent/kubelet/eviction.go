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

// evictionStats gives upstream's eviction manager the figures by which it decides, every ten seconds. The manager needs
// pods' figures only when it evicts. Upstream makes them each time, which costs much: cAdvisor reads each container's
// limits, and each shim reads its cgroups.
type evictionStats struct {
	stats.SummaryProvider                       // with pods
	node                  stats.SummaryProvider // without
	pods                  func() []*v1.Pod
	thresholds            *[]evictionapi.Threshold
}

// Get implements stats.SummaryProvider. It omits pods when no threshold is met and no pod has a storage limit, since
// nothing is evicted then.
func (s evictionStats) Get(ctx context.Context, update bool) (*statsapi.Summary, error) {
	if !slices.ContainsFunc(s.pods(), limitsStorage) {
		node, err := s.node.Get(ctx, update)
		if err != nil || !anyMet(*s.thresholds, node) {
			return node, err
		}
	}
	return s.SummaryProvider.Get(ctx, update)
}

// limitsStorage reports whether a pod is evicted when it uses more storage than its own limit.
func limitsStorage(p *v1.Pod) bool {
	if _, ok := resourcehelper.PodLimits(p, resourcehelper.PodResourcesOptions{})[v1.ResourceEphemeralStorage]; ok {
		return true
	}
	return slices.ContainsFunc(p.Spec.Volumes, func(v v1.Volume) bool { return v.EmptyDir != nil && v.EmptyDir.SizeLimit != nil })
}

// anyMet reports whether, for upstream, any of the thresholds is met or less is free than it reclaims then.
func anyMet(thresholds []evictionapi.Threshold, s *statsapi.Summary) bool {
	observed, _ := makeSignalObservations(logr.Discard(), s)
	return len(thresholdsMet(logr.Discard(), thresholds, observed, true)) > 0
}

// signalObservations is upstream's map of the same name. The first function below returns it, and the second one takes
// it.
type signalObservations *struct{}

// These are the functions by which upstream's manager decides. They are not exported. A test fails when they move.

//go:linkname makeSignalObservations k8s.io/kubernetes/pkg/kubelet/eviction.makeSignalObservations
func makeSignalObservations(logr.Logger, *statsapi.Summary) (signalObservations, func(*v1.Pod) (statsapi.PodStats, bool))

//go:linkname thresholdsMet k8s.io/kubernetes/pkg/kubelet/eviction.thresholdsMet
func thresholdsMet(logr.Logger, []evictionapi.Threshold, signalObservations, bool) []evictionapi.Threshold

// nodeStats is a provider without pods, for statistics of the node alone.
type nodeStats struct{ stats.Provider }

// ListPodStatsAndUpdateCPUNanoCoreUsage implements stats.Provider.
func (nodeStats) ListPodStatsAndUpdateCPUNanoCoreUsage(context.Context) ([]statsapi.PodStats, error) {
	return nil, nil
}

// Paths of the fields by which a kubelet's eviction manager decides. Upstream has no function that returns them.
var (
	evictionStatsFieldPath = []string{"evictionManager", "summaryProvider"}
	thresholdsFieldPath    = []string{"evictionManager", "config", "Thresholds"}
)

// evictByNode makes the eviction manager of a kubelet that is not running yet use evictionStats. of is that kubelet.
// After an error the kubelet is unchanged.
func evictByNode(ctx context.Context, kubelet any, of stats.Provider) error {
	summary, err := kubecompat.Field[stats.SummaryProvider](kubelet, evictionStatsFieldPath)
	if err != nil {
		return err
	}
	thresholds, err := kubecompat.Field[[]evictionapi.Threshold](kubelet, thresholdsFieldPath)
	if err != nil {
		return err
	}
	*summary = evictionStats{*summary, stats.NewSummaryProvider(ctx, nodeStats{of}), of.GetPods, thresholds}
	return nil
}
