// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
)

// refusedBy has how long ago nodes refused claims, by "UID node".
type refusedBy map[string]time.Duration

func (r refusedBy) Since(claim types.UID, node string) (time.Duration, bool) {
	since, ok := r[string(claim)+" "+node]
	return since, ok
}

func TestRefusedVolumes(t *testing.T) {
	claims := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	for name, uid := range map[string]types.UID{"data": "u-data", "logs": "u-logs", "pod-own": "u-own"} {
		if err := claims.Add(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: uid}}); err != nil {
			t.Fatal(err)
		}
	}
	p := &refusedVolumes{claims: corelisters.NewPersistentVolumeClaimLister(claims), refusals: refusedBy{
		"u-data a": time.Second, "u-data b": 10 * refusedVolumesStep, "u-logs b": 3*refusedVolumesStep - 1, "u-own a": 2 * time.Hour,
	}}
	var nodes []fwk.NodeInfo
	for _, name := range []string{"a", "b", "c"} {
		n := framework.NewNodeInfo()
		n.SetNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
		nodes = append(nodes, n)
	}
	claim := func(name string) corev1.Volume {
		return corev1.Volume{VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}
	}
	for name, tt := range map[string]struct {
		volumes []corev1.Volume
		want    []int64 // nil: the plugin is skipped
		alone   bool    // whether the pod is kept out of batches
	}{
		"no volume":         {},
		"no claim":          {volumes: []corev1.Volume{{Name: "x", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}},
		"a claim to come":   {volumes: []corev1.Volume{claim("missing")}, alone: true},
		"two nodes refused": {volumes: []corev1.Volume{claim("data")}, want: []int64{0, 10, 100}, alone: true},
		"the last refusal":  {volumes: []corev1.Volume{claim("data"), claim("logs")}, want: []int64{0, 2, 100}, alone: true},
		"a claim of the pod's own": {volumes: []corev1.Volume{{Name: "own", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}}},
			want: []int64{99, 100, 100}, alone: true},
	} {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "pod"}, Spec: corev1.PodSpec{Volumes: tt.volumes}}
			if s := p.PreScore(t.Context(), nil, pod, nodes); s.IsSkip() != (tt.want == nil) || !s.IsSkip() && !s.IsSuccess() {
				t.Errorf("PreScore says %v", s)
			}
			for i, want := range tt.want {
				if got, s := p.Score(t.Context(), nil, pod, nodes[i]); got != want || !s.IsSuccess() {
					t.Errorf("node %d has %d points, want %d: %v", i, got, want, s)
				}
			}
			if _, s := p.SignPod(t.Context(), pod); s.IsSuccess() == tt.alone {
				t.Errorf("SignPod says %v", s)
			}
		})
	}
}

// TestRefusedVolumesInEachProfile: those of a configuration file have it too.
func TestRefusedVolumesInEachProfile(t *testing.T) {
	s, err := Options{ExtraArgs: []string{"config=" + file(t, `
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
profiles:
- schedulerName: default-scheduler
- schedulerName: packed
`)}}.settings()
	if err != nil {
		t.Fatal(err)
	}
	registry := addRefusedVolumes(s.config.Profiles, refusedBy{})
	if registry[refusedVolumesName] == nil {
		t.Error("nobody makes the plugin")
	}
	for _, p := range s.config.Profiles {
		n := 0
		for _, e := range p.Plugins.MultiPoint.Enabled {
			if e.Name == refusedVolumesName && e.Weight == refusedVolumesWeight {
				n++
			}
		}
		if n != 1 {
			t.Errorf("profile %s has it %d times", p.SchedulerName, n)
		}
	}
}
