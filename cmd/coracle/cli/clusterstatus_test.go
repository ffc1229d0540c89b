// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

var noon = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func waiting(reason, message string) corev1.ContainerState {
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
}

// startError is the state of a container that the runtime could not start.
func startError(message string) corev1.ContainerState {
	return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 128, Reason: "StartError", Message: message}}
}

func TestStatusExplainsFailingPods(t *testing.T) {
	started := metav1.NewTime(noon.Add(-10 * time.Minute))
	ended := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 3}}
	killed := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}}
	cases := map[string]struct {
		status corev1.PodStatus
		want   string // "" for no trouble
	}{
		"crash": {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "c", RestartCount: 5, State: waiting("CrashLoopBackOff", ""), LastTerminationState: ended}}},
			"pod shop/web: container c keeps exiting with exit code 3 (5 times): coracle kubectl logs -n shop web -c c --previous"},
		"crash, most of the back-off": {corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{Name: "c", RestartCount: 5, State: ended}}},
			"pod shop/web: container c keeps exiting with exit code 3 (5 times): coracle kubectl logs -n shop web -c c --previous"},
		"first crash": {corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{Name: "c", State: ended}}}, ""},
		"done at the second attempt": {corev1.PodStatus{Phase: corev1.PodRunning, InitContainerStatuses: []corev1.ContainerStatus{
			{Name: "i", RestartCount: 1, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}}}}, ""},
		"memory": {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "c", State: waiting("CrashLoopBackOff", ""), LastTerminationState: killed}}},
			"because it needs more memory than its limit"},
		"image": {corev1.PodStatus{InitContainerStatuses: []corev1.ContainerStatus{{Name: "i", Image: "x/y:1", State: waiting("ImagePullBackOff", "")}}},
			"container i cannot get its image x/y:1; without a registry, put an archive of the image into /images"},
		"config": {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "c", State: waiting("CreateContainerConfigError", `secret "s" not found`)}}}, `cannot be started: secret "s" not found`},
		"no pause": {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "c", RestartCount: 2, State: waiting("CrashLoopBackOff", ""), LastTerminationState: startError(`sandbox container "1f" is not running`)}}},
			`container c cannot be started: the pod's sandbox has ended, so the program pause does not run on node pi; restart coracle there, ` +
				`which replaces a damaged pause: sandbox container "1f" is not running`},
		"no pause, most of the back-off": {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "c", RestartCount: 2, State: startError("failed to load sandbox task: dial unix")}}},
			"the program pause does not run on node pi"},
		"no pause at the moment": {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "c", State: waiting("RunContainerError", `sandbox container "1f" is not running`)}}},
			"the program pause does not run on node pi"},
		"no program":    {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "c", RestartCount: 2, State: startError(`exec: "/web": not found`)}}}, `container c cannot be started: exec: "/web": not found`},
		"no node":       {corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "Insufficient memory.", LastTransitionTime: started}}}, "cannot be scheduled: Insufficient memory."},
		"evicted":       {corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Message: "low on disk"}, "has failed: Evicted low on disk"},
		"not ready":     {corev1.PodStatus{Phase: corev1.PodRunning, StartTime: &started}, "runs but is not ready"},
		"on its way":    {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{State: waiting("ContainerCreating", "")}}}, ""},
		"just created":  {corev1.PodStatus{}, ""},
		"just starting": {corev1.PodStatus{Phase: corev1.PodRunning, StartTime: &metav1.Time{Time: noon}}, ""},
	}
	for name, c := range cases {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.PodSpec{NodeName: "pi"}, Status: c.status}
		got := podProblem(pod, noon, "/images")
		testenv.False(t, (c.want == "") != (got == "") || !strings.Contains(got, c.want), "%s: got %q, want %q", name, got, c.want)
	}
}

// TestFailedJobAttemptsAreNotReported: failed attempts of a Job are not reported; a failed pod of anything else is.
func TestFailedJobAttemptsAreNotReported(t *testing.T) {
	pod := func(api, kind string, phase corev1.PodPhase) corev1.Pod {
		p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}, Status: corev1.PodStatus{Phase: phase}}
		if kind != "" {
			p.OwnerReferences = []metav1.OwnerReference{{APIVersion: api, Kind: kind, Name: "x", Controller: new(true)}}
		}
		return p
	}
	var s clusterState
	s.addPods([]corev1.Pod{
		pod("batch/v1", "Job", corev1.PodFailed), pod("batch/v1", "Job", corev1.PodSucceeded), pod("", "", corev1.PodSucceeded),
		pod("apps/v1", "ReplicaSet", corev1.PodFailed), pod("example.org/v1", "Job", corev1.PodFailed), pod("", "", corev1.PodFailed),
	}, noon, "/images")
	if s.counts.Pods != 5 || s.counts.PodsReady != 2 || len(s.problems) != 3 {
		t.Errorf("%d of %d pods well, problems %q; want 2 of 5 and three problems", s.counts.PodsReady, s.counts.Pods, s.problems)
	}
}

// TestImagePulledAlways: an archive does not help a pod that asks the registry each time.
func TestImagePulledAlways(t *testing.T) {
	for policy, want := range map[corev1.PullPolicy]bool{corev1.PullAlways: true, corev1.PullIfNotPresent: false} {
		pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", ImagePullPolicy: policy}}}}
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", Image: "nginx", State: waiting("ErrImagePull", "")}}
		if got := podProblem(pod, noon, "/images"); strings.Contains(got, "imagePullPolicy is Always") != want {
			t.Errorf("%s: %q", policy, got)
		}
	}
}

func TestStatusExplainsUnhealthyNodes(t *testing.T) {
	cond := func(kind corev1.NodeConditionType, s corev1.ConditionStatus) corev1.NodeCondition {
		return corev1.NodeCondition{Type: kind, Status: s, Message: "because"}
	}
	cases := map[string]struct {
		conditions []corev1.NodeCondition
		want       string
	}{
		"well":    {[]corev1.NodeCondition{cond(corev1.NodeReady, corev1.ConditionTrue), cond(corev1.NodeDiskPressure, corev1.ConditionFalse)}, ""},
		"silent":  {[]corev1.NodeCondition{cond(corev1.NodeReady, corev1.ConditionUnknown)}, "has been unreachable since"},
		"unready": {[]corev1.NodeCondition{cond(corev1.NodeReady, corev1.ConditionFalse)}, "is not ready: because"},
		"disk":    {[]corev1.NodeCondition{cond(corev1.NodeReady, corev1.ConditionTrue), cond(corev1.NodeDiskPressure, corev1.ConditionTrue)}, "low on disk space"},
	}
	for name, c := range cases {
		got := nodeProblem(&corev1.Node{Status: corev1.NodeStatus{Conditions: c.conditions}})
		testenv.False(t, (c.want == "") != (got == "") || !strings.Contains(got, c.want), "%s: got %q, want %q", name, got, c.want)
	}
}
