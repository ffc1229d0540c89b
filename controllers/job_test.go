// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestFinishedJobIsCountedAndRemoved takes a Job as far as it gets without a kubelet, whose part the test plays. What
// the other kinds of workload do is looked at with a kubelet (test/e2e).
func TestFinishedJobIsCountedAndRemoved(t *testing.T) {
	c := shared
	c.term(t)
	ns := c.namespace(t, "workloads")
	c.node(t, "workloads-node")
	refused := refusals(t)
	c.job(t, ns)
	if n := refusals(t) - refused; n != 0 {
		t.Errorf("the API server refused %g requests", n)
	}
}

// play sets the status of an app's pods as a kubelet would.
func (c *cluster) play(t *testing.T, ns, app string, phase corev1.PodPhase) {
	t.Helper()
	ready := corev1.ConditionFalse
	if phase == corev1.PodRunning {
		ready = corev1.ConditionTrue
	}
	patch := fmt.Sprintf(`{"status":{"phase":%q,"podIP":"10.42.0.9","podIPs":[{"ip":"10.42.0.9"}],"conditions":[{"type":"Ready","status":%q}]}}`, phase, ready)
	pods := testenv.Must(c.client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app}))(t)
	for _, p := range pods.Items {
		testenv.Must(
			c.client.CoreV1().Pods(ns).Patch(t.Context(), p.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"))(t)
	}
}

func (c *cluster) job(t *testing.T, ns string) {
	spec := batchv1.JobSpec{Template: podTemplate("once"), TTLSecondsAfterFinished: ptr.To[int32](1)}
	spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
	testenv.Must(c.client.BatchV1().Jobs(ns).Create(t.Context(), &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "once"}, Spec: spec}, metav1.CreateOptions{}))(t)
	eventually(t, "the job's pod", func(ctx context.Context) error { return c.bound(ctx, ns, "once", 1) })
	c.play(t, ns, "once", corev1.PodSucceeded)
	watch := testenv.Must(c.client.BatchV1().Jobs(ns).Watch(t.Context(), metav1.ListOptions{}))(t)
	defer watch.Stop()
	complete := false
	for gone := false; !gone; {
		select {
		case e := <-watch.ResultChan():
			job, ok := e.Object.(*batchv1.Job)
			testenv.Require(t, ok, "%s %v", e.Type, e.Object)
			complete = complete || job.Status.Succeeded == 1
			gone = e.Type == "DELETED"
		case <-time.After(2 * time.Minute):
			t.Fatal("the finished job is still there after a minute")
		}
	}
	testenv.True(t, complete, "the job went without having counted its pod")
}
