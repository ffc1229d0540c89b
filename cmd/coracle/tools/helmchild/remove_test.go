// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"context"
	"fmt"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestStalledOrFailedHookFailsTheRelease lets hooks stall and fail, at each end of a release's life.
func TestStalledOrFailedHookFailsTheRelease(t *testing.T) {
	tt := newTester(t)
	req := tt.request(web("1.0.0").With("templates/hook.yaml", fmt.Sprintf(hook, "pre-install,pre-upgrade")))
	req.Timeout, req.FailurePolicy = time.Second, helmjob.Retry
	r := tt.do(req, "", helmjob.TimedOut)
	tt.says(r, "hook", "1s", "web-hook")
	tt.wantGreeting("web", "")

	// One that fails. A real job controller would say so; here the test does.
	req.Timeout = 2 * time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	old := testenv.Must(shared.client.BatchV1().Jobs(tt.ns).Get(ctx, "web-hook", metav1.GetOptions{}))(t)
	failed := make(chan struct{})
	go func() {
		defer close(failed)
		tt.failJob(ctx, "web-hook", old)
	}()
	r = tt.do(req, "", helmjob.HookFailed)
	cancel()
	<-failed
	tt.says(r, "hook", "web-hook")

	// Mended, and then removed although its last hook stalls.
	good := tt.request(web("1.0.0").With("templates/hook.yaml", fmt.Sprintf(hook, "pre-delete")))
	tt.do(good, helmjob.Recovered, "")
	gone := tt.removal()
	gone.Timeout = 5 * time.Second // its objects go meanwhile
	tt.says(tt.do(gone, helmjob.Uninstalled, ""), "hooks failed and were left out", "web-hook")
	tt.wantGreeting("web", "")
	tt.do(tt.removal(), helmjob.Uninstalled, "")
}

// failJob marks a Job as failed as soon as it is there and is not the old one.
func (t *tester) failJob(ctx context.Context, name string, old *batchv1.Job) {
	jobs := shared.client.BatchV1().Jobs(t.ns)
	for ctx.Err() == nil {
		if j, err := jobs.Get(ctx, name, metav1.GetOptions{}); err == nil && j.UID != old.UID {
			now := metav1.Now()
			j.Status = batchv1.JobStatus{StartTime: &now, Failed: 1, Conditions: []batchv1.JobCondition{
				{Type: batchv1.JobFailureTarget, Status: corev1.ConditionTrue, Reason: "BackoffLimitExceeded", LastTransitionTime: now},
				{Type: batchv1.JobFailed, Status: corev1.ConditionTrue, Reason: "BackoffLimitExceeded", Message: "the hook says no", LastTransitionTime: now},
			}}
			if _, err := jobs.UpdateStatus(ctx, j, metav1.UpdateOptions{}); err == nil {
				return
			}
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
}

const crd = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: boats.%[1]s.example.com
spec:
  group: %[1]s.example.com
  scope: Namespaced
  names: {plural: boats, kind: Boat}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

// TestRemovalWithoutItsKind removes a release whose own definition of a kind a user has removed.
func TestRemovalWithoutItsKind(t *testing.T) {
	tt := newTester(t)
	boat := fmt.Sprintf("apiVersion: %s.example.com/v1\nkind: Boat\nmetadata: {name: coracle}\n", tt.ns)
	chart := web("1.0.0").With("crds/boat.yaml", fmt.Sprintf(crd, tt.ns)).With("templates/boat.yaml", boat)
	tt.do(tt.request(chart), helmjob.Installed, "")
	boats := schema.GroupVersionResource{Group: tt.ns + ".example.com", Version: "v1", Resource: "boats"}
	d := testenv.Must(dynamic.NewForConfig(shared.config))(t)
	definitions := d.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	testenv.NoError(t, definitions.Delete(t.Context(), "boats."+tt.ns+".example.com", metav1.DeleteOptions{}))
	testenv.Eventually(t, 2*time.Minute, "no more boats", func() error {
		_, err := d.Resource(boats).Namespace(tt.ns).List(context.Background(), metav1.ListOptions{})
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("listing them: %w", err)
		}
		groups, err := shared.client.Discovery().ServerGroups()
		if err != nil {
			return err
		}
		for _, g := range groups.Groups {
			if g.Name == boats.Group {
				return fmt.Errorf("the group is still there")
			}
		}
		return nil
	})
	tt.do(tt.removal(), helmjob.Uninstalled, "")
	tt.wantGreeting("web", "")
	tt.says(tt.do(tt.removal(), helmjob.Uninstalled, ""), "is not there")

	// A kind that is not defined.
	r := tt.do(tt.request(web("1.0.0").With("templates/boat.yaml", boat)), "", helmjob.RenderFailed)
	tt.says(r, "Boat")
	testenv.True(t, r.TryAgain, "the definition may come, and it is not to be tried again")
}

// TestKeepPolicyCountsInEveryRemoval looks that Helm's policy counts in every way of removing.
func TestKeepPolicyCountsInEveryRemoval(t *testing.T) {
	tt := newTester(t)
	kept := "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: kept\n  annotations: {helm.sh/resource-policy: keep}\ndata: {greeting: stay}\n"
	tt.do(tt.request(web("1.0.0").With("templates/kept.yaml", kept)), helmjob.Installed, "")
	tt.leave("pending-upgrade")
	tt.do(tt.request(web("1.1.0")), helmjob.Recovered, "")
	tt.wantGreeting("kept", "stay")
	tt.do(tt.request(web("1.2.0").With("templates/kept.yaml", kept)), helmjob.Upgraded, "")
	tt.do(tt.removal(), helmjob.Uninstalled, "")
	tt.wantGreeting("kept", "stay")
	tt.wantGreeting("web", "")
}
