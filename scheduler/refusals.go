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
	// refusedVolumesWeight makes one point of this plugin count for more than all points of the others, whose weights
	// are one-digit numbers by default.
	refusedVolumesWeight = 10_000
	// refusedVolumesGrowth is the number of points that a refusal gains while the time since then grows e-fold. After a
	// day, for which localpath remembers it, it has 97.
	refusedVolumesGrowth = 8.6
)

// Refusals records which nodes refused to make a volume for a claim.
type Refusals interface {
	// Since returns the time since a node last refused a claim. It returns false if there was no refusal lately.
	Since(claim types.UID, node string) (time.Duration, bool)
}

// refusedVolumes prefers nodes that did not refuse a claim of the pod. Of those that did, it prefers the one whose
// refusal is the oldest. Upstream's scheduler keeps no refusals, and chooses the node with the best score again. The
// plugin does not exclude nodes, so that a pod for which no other node is left is tried there again.
type refusedVolumes struct {
	refusals Refusals
	claims   corelisters.PersistentVolumeClaimLister
}

var (
	_ fwk.PreScorePlugin = &refusedVolumes{}
	_ fwk.ScorePlugin    = &refusedVolumes{}
	_ fwk.SignPlugin     = &refusedVolumes{} // without it upstream would not schedule pods in batches
)

// addRefusedVolumes adds the plugin to all profiles, and returns the registry with its constructor.
func addRefusedVolumes(profiles []config.KubeSchedulerProfile, refusals Refusals) frameworkruntime.Registry {
	for _, p := range profiles {
		p.Plugins.MultiPoint.Enabled = append(p.Plugins.MultiPoint.Enabled,
			config.Plugin{Name: refusedVolumesName, Weight: refusedVolumesWeight})
	}
	return frameworkruntime.Registry{refusedVolumesName: func(_ context.Context, _ runtime.Object, h fwk.Handle) (fwk.Plugin, error) {
		return &refusedVolumes{refusals: refusals, claims: h.SharedInformerFactory().Core().V1().PersistentVolumeClaims().Lister()}, nil
	}}
}

// Name returns the plugin's name in upstream's configuration and metrics.
func (*refusedVolumes) Name() string { return refusedVolumesName }

// claimsOf returns the UIDs of a pod's claims.
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
		// a claim that does not exist yet was not refused
		if claim, err := p.claims.PersistentVolumeClaims(pod.Namespace).Get(name); err == nil {
			claims = append(claims, claim.UID)
		}
	}
	return claims
}

// sinceRefusal returns the time since a node last refused one of these claims. It returns false if there was no refusal
// lately.
func (p *refusedVolumes) sinceRefusal(claims []types.UID, node string) (last time.Duration, refused bool) {
	for _, c := range claims {
		if since, ok := p.refusals.Since(c, node); ok && (!refused || since < last) {
			last, refused = since, true
		}
	}
	return last, refused
}

// PreScore skips pods that no node refused, which are nearly all pods.
func (p *refusedVolumes) PreScore(_ context.Context, _ fwk.CycleState, pod *corev1.Pod, nodes []fwk.NodeInfo) *fwk.Status {
	if claims := p.claimsOf(pod); len(claims) > 0 {
		for _, n := range nodes {
			if _, refused := p.sinceRefusal(claims, n.Node().Name); refused {
				return nil
			}
		}
	}
	return fwk.NewStatus(fwk.Skip)
}

// Score returns the highest score for nodes that refused nothing.
func (p *refusedVolumes) Score(_ context.Context, _ fwk.CycleState, pod *corev1.Pod, node fwk.NodeInfo) (int64, *fwk.Status) {
	since, refused := p.sinceRefusal(p.claimsOf(pod), node.Node().Name)
	if !refused {
		return fwk.MaxScore, nil
	}
	return pointsSince(since), nil
}

// pointsSince returns the points for the time since a refusal: one more for each eighth or so that the time is longer.
// It distinguishes the nodes that have waited longest among nodes tried for a day, two minutes apart. It also
// distinguishes nodes tried within the first seconds.
func pointsSince(refusal time.Duration) int64 {
	return min(int64(refusedVolumesGrowth*math.Log1p(refusal.Seconds())), fwk.MaxScore-1)
}

// ScoreExtensions returns nil, since the scores are final.
func (*refusedVolumes) ScoreExtensions() fwk.ScoreExtensions { return nil }

// SignPod excludes pods with claims from batches, in which one pod's scores are reused for the next one. For other pods
// it adds nothing to the signature.
func (*refusedVolumes) SignPod(_ context.Context, pod *corev1.Pod) ([]fwk.SignFragment, *fwk.Status) {
	for _, v := range pod.Spec.Volumes {
		if v.PersistentVolumeClaim != nil || v.Ephemeral != nil {
			return nil, fwk.NewStatus(fwk.Unschedulable, "nodes may refuse its volumes")
		}
	}
	return nil, nil
}
