// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/controllers/helmcharts"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// checks: where a chart asks for it Helm looks after the objects of its release again and again. The chart stays ready
// meanwhile, and says so when that fails.
func (h *charts) checks(t *testing.T) {
	h.t = t
	defer h.instead(nil)
	h.create("checked", map[string]any{"chart": "oci://registry.example/checked"})
	h.awaitRevision("checked", 1)
	for _, bad := range []string{"now and then", "1ms", "-1h", ""} {
		h.patch("checked", `{"metadata":{"annotations":{"coracle.dev/reconcile-every":"`+bad+`"}}}`)
		eventually(t, "the annotation is refused", func(context.Context) error {
			if c := h.await("checked", "BadRequest"); !strings.Contains(fmt.Sprint(c.Status.Conditions), fmt.Sprintf("%q", bad)) {
				return fmt.Errorf("it says %+v", c.Status)
			}
			return nil
		})
	}
	answer := make(chan *helmjob.Result) // taken by the next look
	give := func(r *helmjob.Result) {
		t.Helper()
		select {
		case answer <- r:
		case <-time.After(2 * time.Minute):
			t.Fatal("Helm was not asked")
		}
	}
	h.instead(func(ctx context.Context, q *helmjob.Request) (*helmjob.Result, error) {
		if q.Operation == helmjob.Uninstall {
			return h.helm(q)
		}
		testenv.False(t, q.Upgrade, "Helm was asked for %+v", q)
		select {
		case r := <-answer:
			return r, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	release := &helmjob.Release{Revision: 1, Status: "deployed"}
	h.patch("checked", `{"metadata":{"annotations":{"coracle.dev/reconcile-every":"30ms"}}}`)
	give(&helmjob.Result{Action: helmjob.Unchanged, Release: release})
	before := h.await("checked", helmcharts.ReasonDeployed)
	give(&helmjob.Result{Action: helmjob.Unchanged, Release: release})
	give(&helmjob.Result{Action: helmjob.Recovered, Message: "An object was made again.", Release: release})
	h.awaitEvent("checked", "Recovered", "An object was made again.")
	give(&helmjob.Result{Action: helmjob.Unchanged, Release: release}) // so the one before has been noted
	if now := h.await("checked", helmcharts.ReasonDeployed); now.ResourceVersion != before.ResourceVersion {
		t.Errorf("looks at the objects have changed the chart: %+v, before %+v", now.Status, before.Status)
	}
	give(&helmjob.Result{Reason: helmjob.UpgradeFailed, Message: "An object was refused.", TryAgain: true})
	eventually(t, "a failed read is reported", func(context.Context) error {
		if c := h.await("checked", "UpgradeFailed"); !strings.Contains(fmt.Sprint(c.Status.Conditions), "could not be checked: An object was refused.") {
			return fmt.Errorf("it says %+v", c.Status)
		}
		return nil
	})
	give(&helmjob.Result{Action: helmjob.Unchanged, Release: release})
	h.awaitRevision("checked", 1)
	h.patch("checked", `{"metadata":{"annotations":{"coracle.dev/reconcile-every":null}}}`)
	h.removed("checked")
}
