// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

// TestWorkloads takes every kind of workload as far as it gets without a kubelet, whose part the test plays.
func TestWorkloads(t *testing.T) {
	c := shared
	c.term(t)
	ns := c.namespace(t, "workloads")
	c.node(t, "workloads-node")
	refused := refusals(t)

	t.Run("StatefulSet", func(t *testing.T) { c.statefulSet(t, ns) })
	t.Run("DaemonSet", func(t *testing.T) { c.daemonSet(t, ns) })
	t.Run("Job", func(t *testing.T) { c.job(t, ns) })
	t.Run("CronJob", func(t *testing.T) { c.cronJob(t, ns) })
	t.Run("Service", func(t *testing.T) { c.service(t, ns) })

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
	pods, err := c.client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		if _, err := c.client.CoreV1().Pods(ns).Patch(t.Context(), p.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
	}
}

func (c *cluster) statefulSet(t *testing.T, ns string) {
	_, err := c.client.AppsV1().StatefulSets(ns).Create(t.Context(), &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "row"},
		Spec:       appsv1.StatefulSetSpec{Replicas: ptr.To[int32](2), Selector: selector("row"), ServiceName: "row", Template: podTemplate("row")},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first pod", func(ctx context.Context) error { return c.bound(ctx, ns, "row", 1) })
	c.play(t, ns, "row", corev1.PodRunning)
	eventually(t, "the second pod after the first is ready", func(ctx context.Context) error { return c.bound(ctx, ns, "row", 2) })
	if _, err := c.client.CoreV1().Pods(ns).Get(t.Context(), "row-1", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}

func (c *cluster) daemonSet(t *testing.T, ns string) {
	_, err := c.client.AppsV1().DaemonSets(ns).Create(t.Context(), &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "each"},
		Spec:       appsv1.DaemonSetSpec{Selector: selector("each"), Template: podTemplate("each")},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a pod on the node", func(ctx context.Context) error { return c.bound(ctx, ns, "each", 1) })
}

func jobSpec(app string) batchv1.JobSpec {
	template := podTemplate(app)
	template.Spec.RestartPolicy = corev1.RestartPolicyNever
	return batchv1.JobSpec{Template: template}
}

func (c *cluster) job(t *testing.T, ns string) {
	spec := jobSpec("once")
	spec.TTLSecondsAfterFinished = ptr.To[int32](1)
	_, err := c.client.BatchV1().Jobs(ns).Create(t.Context(), &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "once"}, Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the job's pod", func(ctx context.Context) error { return c.bound(ctx, ns, "once", 1) })
	c.play(t, ns, "once", corev1.PodSucceeded)
	watch, err := c.client.BatchV1().Jobs(ns).Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	complete := false
	for gone := false; !gone; {
		select {
		case e := <-watch.ResultChan():
			job, ok := e.Object.(*batchv1.Job)
			if !ok {
				t.Fatalf("%s %v", e.Type, e.Object)
			}
			complete = complete || job.Status.Succeeded == 1
			gone = e.Type == "DELETED"
		case <-time.After(2 * time.Minute):
			t.Fatal("the finished job is still there after a minute")
		}
	}
	if !complete {
		t.Error("the job went without having counted its pod")
	}
}

func (c *cluster) cronJob(t *testing.T, ns string) {
	spec := jobSpec("often")
	cj, err := c.client.BatchV1().CronJobs(ns).Create(t.Context(), &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Name: "often"},
		Spec:       batchv1.CronJobSpec{Schedule: "* * * * *", JobTemplate: batchv1.JobTemplateSpec{Spec: spec}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// As if it had last run two minutes ago, so that a run is due.
	cj.Status.LastScheduleTime = &metav1.Time{Time: time.Now().Add(-2 * time.Minute)}
	if _, err := c.client.BatchV1().CronJobs(ns).UpdateStatus(t.Context(), cj, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the run's pod", func(ctx context.Context) error { return c.bound(ctx, ns, "often", 1) })
}

func (c *cluster) service(t *testing.T, ns string) {
	_, err := c.client.CoreV1().Services(ns).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "row"},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "row"},
			Ports:    []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.play(t, ns, "row", corev1.PodRunning)
	eventually(t, "a ready endpoint", func(ctx context.Context) error {
		slices, err := c.client.DiscoveryV1().EndpointSlices(ns).List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=row"})
		if err != nil {
			return err
		}
		for _, s := range slices.Items {
			for _, e := range s.Endpoints {
				if ptr.Deref(e.Conditions.Ready, false) {
					return nil
				}
			}
		}
		return errors.New("none")
	})
}
