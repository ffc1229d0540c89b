// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"context"
	"math"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/component-helpers/storage/ephemeral"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
)

const (
	refusedVolumesName = "RefusedVolumes"
	// refusedVolumesWeight makes one point of this plugin count for more than all that the others give, whose weights
	// are one-digit numbers by default.
	refusedVolumesWeight = 10_000
	// refusedVolumesGrowth is how many points a refusal gets while the time since then grows e-fold: after a day, for
	// which localpath remembers it, it has 97.
	refusedVolumesGrowth = 8.6
)

// Refusals knows which nodes gave a claim no volume.
type Refusals interface {
	// Since is how long ago a node refused a claim for the last time, and false if it did not lately.
	Since(claim types.UID, node string) (time.Duration, bool)
}

// refusedVolumes prefers, for a pod whose claim was refused by nodes, the other ones, and of those that refused the one
// where that is longest ago. Upstream's scheduler forgets that a node refused, and chooses the one that it likes best
// again. It only prefers, so that a pod for which no other node is left tries on.
type refusedVolumes struct {
	refusals Refusals
	claims   corelisters.PersistentVolumeClaimLister
}

var (
	_ fwk.PreScorePlugin = &refusedVolumes{}
	_ fwk.ScorePlugin    = &refusedVolumes{}
	_ fwk.SignPlugin     = &refusedVolumes{} // without it upstream would place no pods in batches
)

// addRefusedVolumes adds the plugin to all profiles, and returns where the scheduler finds it.
func addRefusedVolumes(profiles []config.KubeSchedulerProfile, refusals Refusals) frameworkruntime.Registry {
	for _, p := range profiles {
		p.Plugins.MultiPoint.Enabled = append(p.Plugins.MultiPoint.Enabled,
			config.Plugin{Name: refusedVolumesName, Weight: refusedVolumesWeight})
	}
	return frameworkruntime.Registry{refusedVolumesName: func(_ context.Context, _ runtime.Object, h fwk.Handle) (fwk.Plugin, error) {
		return &refusedVolumes{refusals: refusals, claims: h.SharedInformerFactory().Core().V1().PersistentVolumeClaims().Lister()}, nil
	}}
}

// Name is the plugin's in upstream's configuration and metrics.
func (*refusedVolumes) Name() string { return refusedVolumesName }

// claimsOf are a pod's claims.
func (p *refusedVolumes) claimsOf(pod *corev1.Pod) (claims []types.UID) {
	for i := range pod.Spec.Volumes {
		var name string
		switch v := &pod.Spec.Volumes[i]; {
		case v.PersistentVolumeClaim != nil:
			name = v.PersistentVolumeClaim.ClaimName
		case v.Ephemeral != nil:
			name = ephemeral.VolumeClaimName(pod, v)
		default:
			continue
		}
		// one that does not exist yet was not refused
		if claim, err := p.claims.PersistentVolumeClaims(pod.Namespace).Get(name); err == nil {
			claims = append(claims, claim.UID)
		}
	}
	return claims
}

// since is how long ago a node refused one of these claims for the last time, and false if it did not lately.
func (p *refusedVolumes) since(claims []types.UID, node string) (last time.Duration, refused bool) {
	for _, c := range claims {
		if since, ok := p.refusals.Since(c, node); ok && (!refused || since < last) {
			last, refused = since, true
		}
	}
	return last, refused
}

// PreScore leaves out the pods that no node refused, which are nearly all.
func (p *refusedVolumes) PreScore(_ context.Context, _ fwk.CycleState, pod *corev1.Pod, nodes []fwk.NodeInfo) *fwk.Status {
	if claims := p.claimsOf(pod); len(claims) > 0 {
		for _, n := range nodes {
			if _, refused := p.since(claims, n.Node().Name); refused {
				return nil
			}
		}
	}
	return fwk.NewStatus(fwk.Skip)
}

// Score is the highest for nodes that refused nothing.
func (p *refusedVolumes) Score(_ context.Context, _ fwk.CycleState, pod *corev1.Pod, node fwk.NodeInfo) (int64, *fwk.Status) {
	since, refused := p.since(p.claimsOf(pod), node.Node().Name)
	if !refused {
		return fwk.MaxScore, nil
	}
	return pointsSince(since), nil
}

// pointsSince are a point for each eighth or so that a time is longer: of nodes that have been asked for a day, two
// minutes apart, those that had to wait longest are distinguished from the others as well as those that were asked
// within the first seconds.
func pointsSince(refusal time.Duration) int64 {
	return min(int64(refusedVolumesGrowth*math.Log1p(refusal.Seconds())), fwk.MaxScore-1)
}

// ScoreExtensions has nothing: the scores are final.
func (*refusedVolumes) ScoreExtensions() fwk.ScoreExtensions { return nil }

// SignPod keeps pods with claims out of batches, in which one pod's scores serve for the next one; of other pods the
// plugin says nothing.
func (*refusedVolumes) SignPod(_ context.Context, pod *corev1.Pod) ([]fwk.SignFragment, *fwk.Status) {
	for _, v := range pod.Spec.Volumes {
		if v.PersistentVolumeClaim != nil || v.Ephemeral != nil {
			return nil, fwk.NewStatus(fwk.Unschedulable, "nodes may refuse its volumes")
		}
	}
	return nil, nil
}
