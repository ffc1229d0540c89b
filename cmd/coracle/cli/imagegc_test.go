// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/internal/embedded"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestImagesThatCannotBeCollectedAreNamed: a node whose kubelet said lately that it cannot remove enough images is a
// problem, with the images that no pod of the node uses and what to do. An event of an hour ago, and another node's, is
// none; images that pods use, by whichever name, are not listed.
func TestImagesThatCannotBeCollectedAreNamed(t *testing.T) {
	const message = "Failed to free sufficient space by deleting unused images (freed 0 bytes)."
	event := func(node, reason string, at time.Time) *corev1.Event {
		return &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: node + reason}, Reason: reason, Message: message,
			LastTimestamp: metav1.NewTime(at), InvolvedObject: corev1.ObjectReference{Kind: "Node", Name: node}}
	}
	image := func(mb int64, names ...string) corev1.ContainerImage {
		return corev1.ContainerImage{Names: names, SizeBytes: mb * 1_000_000}
	}
	digest := "app.example/c@sha256:" + strings.Repeat("a", 64)
	node := func(name string) corev1.Node {
		return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{Images: []corev1.ContainerImage{
			image(120, "app.example/app:v1"), image(60, "docker.io/library/web:latest"), image(50, digest, "app.example/c:1"),
			image(40, "app.example/old@sha256:"+strings.Repeat("b", 64), "app.example/old:2"), image(1, embedded.PauseImage),
		}}}
	}
	pod := func(on, image, id string) corev1.Pod {
		return corev1.Pod{Spec: corev1.PodSpec{NodeName: on, Containers: []corev1.Container{{Image: image}}},
			Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Image: image, ImageID: id}}}}
	}
	pods := []corev1.Pod{pod("pi", "web", ""), pod("pi", "x", digest), pod("other", "app.example/app:v1", "")}
	read := func(nodes []corev1.Node, events ...*corev1.Event) []string {
		t.Helper()
		c := fake.NewClientset()
		for _, e := range events {
			testenv.NoError(t, c.Tracker().Add(e))
		}
		var s clusterState
		testenv.NoError(t, s.readImageGC(t.Context(), c, nodes, pods, noon, "/images"))
		return s.problems
	}
	nodes := []corev1.Node{node("pi"), node("other")}
	got := read(nodes, event("pi", imageGCFailed, noon.Add(-5*time.Minute)), event("other", imageGCFailed, noon.Add(-time.Hour)),
		event("other", "Rebooted", noon))
	testenv.Equal(t, len(got), 1, "problems:")
	for _, words := range []string{"node pi", imageGCFailed, "freed 0 bytes", "No pod uses app.example/app:v1 (120 MB), app.example/old:2 (40 MB).",
		"/images", "coracle ctr images rm"} {
		testenv.Contains(t, got[0], words, "the problem")
	}
	for _, words := range []string{"web", "app.example/c", "pause"} {
		testenv.False(t, strings.Contains(got[0], words), "it names %s, which a pod uses: %s", words, got[0])
	}
	all := node("pi")
	all.Status.Images = all.Status.Images[1:2]
	got = read([]corev1.Node{all}, event("pi", imageGCFailed, noon))
	testenv.Contains(t, strings.Join(got, "\n"), "Pods use all of its images", "with used images alone")
	testenv.Equal(t, len(read(nodes)), 0, "problems without events:")
}
