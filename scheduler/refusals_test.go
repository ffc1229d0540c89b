// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"math/rand/v2"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// refusedBy has how long ago nodes refused claims, by "UID node".
type refusedBy map[string]time.Duration

func (r refusedBy) Since(claim types.UID, node string) (time.Duration, bool) {
	since, ok := r[string(claim)+" "+node]
	return since, ok
}

func TestNodesThatRefusedVolumesScoreLower(t *testing.T) {
	claims := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	for name, uid := range map[string]types.UID{"data": "u-data", "logs": "u-logs", "pod-own": "u-own"} {
		testenv.NoError(t,
			claims.Add(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: uid}}))
	}
	p := &refusedVolumes{claims: corelisters.NewPersistentVolumeClaimLister(claims), refusals: refusedBy{
		"u-data a": time.Second, "u-data b": 6 * time.Minute, "u-logs b": 2 * time.Minute, "u-own a": 30 * time.Hour,
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
		"two nodes refused": {volumes: []corev1.Volume{claim("data")}, want: []int64{5, 50, 100}, alone: true},
		"the last refusal":  {volumes: []corev1.Volume{claim("data"), claim("logs")}, want: []int64{5, 41, 100}, alone: true},
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

// TestEachNodeIsAsked: of any number of nodes that refuse a claim, as the controller of volumes asks them, none is
// asked twice before each was asked once, whichever the other plugins like best, and then none waits for much longer
// than all of them take.
func TestEachNodeIsAsked(t *testing.T) {
	for seed := range uint64(40) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		liked := make([]int64, 1+rnd.IntN(500)) // what the others give a node
		for i := range liked {
			liked[i] = rnd.Int64N(1400)
		}
		asked := make([]time.Duration, len(liked)) // when last; 0: never
		now, pause, most := time.Second, time.Second/2, 0
		turn := make([]int, len(liked)) // the number of the last time
		for n := range 4 * len(liked) {
			best, points := 0, int64(-1)
			for i := range liked {
				p := int64(fwk.MaxScore)
				if since := now - asked[i]; asked[i] > 0 && since < 24*time.Hour {
					p = pointsSince(since)
				}
				if p = p*refusedVolumesWeight + liked[i]; p > points {
					best, points = i, p
				}
			}
			testenv.Require(t, n >= len(liked) || asked[best] <= 0,
				"seed %d: of %d nodes one was asked twice in %d times", seed, len(liked), n+1)
			if n >= len(liked) {
				most = max(most, n-turn[best])
			}
			asked[best], turn[best] = now, n
			now += pause
			pause = min(2*pause, 2*time.Minute)
		}
		for _, n := range turn {
			most = max(most, 4*len(liked)-n)
		}
		testenv.False(t, most > len(liked)*3/2+10, "seed %d: of %d nodes one was not asked %d times in a row", seed, len(liked), most)
	}
}

// TestRefusedVolumesInEachProfile: those of a configuration file have it too.
func TestRefusedVolumesInEachProfile(t *testing.T) {
	s := testenv.Must(Options{ExtraArgs: []string{"config=" + file(t, `
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
profiles:
- schedulerName: default-scheduler
- schedulerName: packed
`)}}.settings())(t)
	registry := addRefusedVolumes(s.config.Profiles, refusedBy{})
	testenv.True(t, registry[refusedVolumesName] != nil, "the plugin is not registered")
	for _, p := range s.config.Profiles {
		n := 0
		for _, e := range p.Plugins.MultiPoint.Enabled {
			if e.Name == refusedVolumesName && e.Weight == refusedVolumesWeight {
				n++
			}
		}
		testenv.False(t, n != 1, "profile %s has it %d times", p.SchedulerName, n)
	}
}
