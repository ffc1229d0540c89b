// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestStopPodsOfANodeThatDoesNotRun: a machine whose node is off, or whose runtime never starts, goes down at once or
// after seconds, and nothing was begun that would end the server.
func TestStopPodsOfANodeThatDoesNotRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		off := NewShutdown()
		close(off.nodeEnded)
		began := time.Now()
		testenv.WantError(t, testenv.Err(off.StopPods(t.Context(), time.Minute)), "the node does not run")
		testenv.Equal(t, time.Since(began), 0, "it took")

		starting := NewShutdown()
		testenv.WantError(t, testenv.Err(starting.StopPods(t.Context(), time.Minute)), "has not started")
		testenv.Equal(t, time.Since(began), attachTimeout, "it took")
		testenv.False(t, off.Stopping() || starting.Stopping(), "a stop has begun")

		for range 30 { // select is fair: one of two ready cases would be taken by chance
			failed := NewShutdown() // the node ran, and has ended
			close(failed.running)
			close(failed.nodeEnded)
			testenv.WantError(t, testenv.Err(failed.StopPods(t.Context(), time.Minute)), "the node does not run")
		}
	})
}

// TestKubeletEndsWithTheStop: the kubelet's context ends when pods are stopped, also one that is made later.
func TestKubeletEndsWithTheStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewShutdown()
		ctx, cancel := s.untilStop(t.Context())
		defer cancel()
		testenv.NoError(t, ctx.Err())
		s.endKubelet()
		synctest.Wait()
		testenv.ErrorIs(t, ctx.Err(), context.Canceled)
		late, cancel := s.untilStop(t.Context())
		defer cancel()
		testenv.ErrorIs(t, late.Err(), context.Canceled)
	})
}

// ownedPod is a pod of a controller, with claims.
func ownedPod(kind string, claims ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", UID: "uid"}}
	if kind != "" {
		p.OwnerReferences = []metav1.OwnerReference{{Kind: kind, Controller: ptr.To(true)}}
	}
	for _, c := range claims {
		v := corev1.Volume{Name: c}
		if c == "inline" {
			v.Ephemeral = &corev1.EphemeralVolumeSource{}
		} else {
			v.PersistentVolumeClaim = &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c}
		}
		p.Spec.Volumes = append(p.Spec.Volumes, v)
	}
	return p
}

// claim is a bound claim and its volume.
func claim(name string, change func(*corev1.PersistentVolumeSpec)) []runtime.Object {
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v-" + name}}
	change(&v.Spec)
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	c.Spec.VolumeName = v.Name
	return []runtime.Object{v, c}
}

func onNode(key string) func(*corev1.PersistentVolumeSpec) {
	return func(s *corev1.PersistentVolumeSpec) {
		s.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
			{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key}}}}}}
	}
}

// TestOnlyNodesWithAwaitedPodsAreMarked: the mark of a node that stopped its pods makes the leader delete pods. So it
// is only written for pods that another node gets by it, and never on a node with autonomy.
func TestOnlyNodesWithAwaitedPodsAreMarked(t *testing.T) {
	var volumes []runtime.Object
	volumes = append(volumes, claim("nfs", func(s *corev1.PersistentVolumeSpec) { s.NFS = &corev1.NFSVolumeSource{} })...)
	volumes = append(volumes, claim("p-inline", onNode(corev1.LabelTopologyZone))...)
	volumes = append(volumes, claim("local", func(s *corev1.PersistentVolumeSpec) { s.Local = &corev1.LocalVolumeSource{} })...)
	volumes = append(volumes, claim("path", onNode(corev1.LabelHostname))...)
	for _, tt := range []struct {
		name     string
		pod      *corev1.Pod
		autonomy string
		want     string
	}{
		{name: "StatefulSet", pod: ownedPod("StatefulSet"), want: "boot"},
		{name: "StatefulSet with a volume for all nodes", pod: ownedPod("StatefulSet", "nfs"), want: "boot"},
		{name: "StatefulSet with a volume of this node", pod: ownedPod("StatefulSet", "path")},
		{name: "Deployment", pod: ownedPod("ReplicaSet")},
		{name: "Deployment with a volume for all nodes", pod: ownedPod("ReplicaSet", "nfs"), want: "boot"},
		{name: "Deployment with an inline claim", pod: ownedPod("ReplicaSet", "inline"), want: "boot"},
		{name: "Deployment with a local volume", pod: ownedPod("ReplicaSet", "local", "nfs")},
		{name: "Deployment with a claim that cannot be read", pod: ownedPod("ReplicaSet", "missing")},
		{name: "DaemonSet", pod: ownedPod("DaemonSet", "nfs")},
		{name: "static pod", pod: ownedPod("Node")},
		{name: "bare pod", pod: ownedPod("", "nfs")},
		{name: "autonomy", pod: ownedPod("StatefulSet"), autonomy: "24h"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Annotations: map[string]string{
				clusterconfig.AutonomyAnnotation: tt.autonomy}}}
			client := fake.NewClientset(append([]runtime.Object{node}, volumes...)...).CoreV1()
			testenv.NoError(t, markNode(t.Context(), client, "n", "boot", map[string]*corev1.Pod{"uid": tt.pod}))
			n := testenv.Must(client.Nodes().Get(t.Context(), "n", metav1.GetOptions{}))(t)
			testenv.Equal(t, n.Annotations[clusterconfig.StoppedAnnotation], tt.want, "the mark:")
		})
	}
}

// TestKubeletWaitsForTheMarksRemoval: the mark is gone before the kubelet starts, however often the API fails.
func TestKubeletWaitsForTheMarksRemoval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Annotations: map[string]string{
			clusterconfig.StoppedAnnotation: "boot", "other": "stays"}}})
		failures := 5
		client.PrependReactor("*", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
			failures--
			return failures >= 0, nil, errors.New("no API yet")
		})
		testenv.NoError(t, unmarkNode(t.Context(), client.CoreV1(), "n", log))
		n := testenv.Must(client.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{}))(t)
		testenv.Equal(t, len(n.Annotations), 1, "annotations %v; how many:", n.Annotations)
		testenv.NoError(t, unmarkNode(t.Context(), client.CoreV1(), "missing", log), "a node that is not registered yet")
	})
}

// TestMarkIsForOneVersion: a request that reaches the store late, when the kubelet has started again, changes nothing.
func TestMarkIsForOneVersion(t *testing.T) {
	client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", ResourceVersion: "7"}})
	conflicts := 1
	client.PrependReactor("patch", "nodes", func(a clienttesting.Action) (bool, runtime.Object, error) {
		testenv.Contains(t, string(a.(clienttesting.PatchAction).GetPatch()), `"resourceVersion":"7"`, "the mark is for any version:")
		conflicts--
		return conflicts >= 0, nil, apierrors.NewConflict(corev1.Resource("nodes"), "n", errors.New("another version"))
	})
	testenv.NoError(t, markNode(t.Context(), client.CoreV1(), "n", "boot", map[string]*corev1.Pod{"uid": ownedPod("StatefulSet")}))
	n := testenv.Must(client.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{}))(t)
	testenv.Equal(t, n.Annotations[clusterconfig.StoppedAnnotation], "boot", "the mark after a conflict:")
}

// TestKubeletWaitsForTheTaintsRemoval: as long as the leader's taint is there, pods of the node may be removed while
// they run.
func TestKubeletWaitsForTheTaintsRemoval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
		node.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeOutOfService, Value: "an operator's"}}
		free := node.DeepCopy()
		node.Spec.Taints = append(node.Spec.Taints, corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: clusterconfig.StoppedTaint})
		client := fake.NewClientset(node)
		leader := time.AfterFunc(time.Minute, func() {
			testenv.Check(t, testenv.Err(client.CoreV1().Nodes().Update(t.Context(), free, metav1.UpdateOptions{})))
		})
		defer leader.Stop()
		began := time.Now()
		testenv.NoError(t, unmarkNode(t.Context(), client.CoreV1(), "n", slog.New(slog.DiscardHandler)))
		testenv.True(t, time.Since(began) >= time.Minute, "the kubelet starts after %v", time.Since(began))
	})
}

// TestNewNodesAreUnmarkedToo: the Node of a machine whose data was removed has the mark of its former life.
func TestNewNodesAreUnmarkedToo(t *testing.T) {
	o := Options{Node: config.Node{Name: "n"}, KubeletKubeconfig: filepath.Join(t.TempDir(), "missing"), DataDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)}
	testenv.True(t, o.isNew(), "the node is not new")
	testenv.WantError(t, o.removeStopMark(t.Context()), "read the node's credentials")
}

// TestPodsAreMadeUnready: ready pods are not ready any more, their other conditions stay, and a pod that has the name
// by now is left alone.
func TestPodsAreMadeUnready(t *testing.T) {
	pod := func(name string, uid types.UID, ready corev1.ConditionStatus) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: uid}}
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}, {Type: corev1.PodScheduled, Status: "True"}}
		return p
	}
	client := fake.NewClientset(pod("web", "1", "True"), pod("waiting", "2", "False"))
	makeAllUnready(t.Context(), client.CoreV1(), map[string]*corev1.Pod{
		"1": pod("web", "1", "True"), "2": pod("waiting", "2", "False"), "3": pod("deleted", "3", "True"),
	}, slog.New(slog.DiscardHandler))
	web := testenv.Must(client.CoreV1().Pods("default").Get(t.Context(), "web", metav1.GetOptions{}))(t)
	c := podutil.GetPodReadyCondition(web.Status)
	if len(web.Status.Conditions) != 2 || c.Status != corev1.ConditionFalse || c.Reason != reasonShutdown {
		t.Errorf("conditions: %+v", web.Status.Conditions)
	}
	patches := 0
	for _, a := range client.Actions() {
		if p, ok := a.(clienttesting.PatchAction); ok && p.GetName() != "deleted" {
			patches++
			testenv.Contains(t, string(p.GetPatch()), `"uid":"1"`, "the patch is for any pod of that name:")
		}
	}
	testenv.Equal(t, patches, 1, "patches of pods that exist:")
}
