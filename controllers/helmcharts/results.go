// SPDX-License-Identifier: Apache-2.0

package helmcharts

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/kinds"
	"github.com/coracle-k8s/coracle/internal/truncate"
)

func (c *Controller) recordResult(ctx context.Context, o workResult) {
	c.running--
	if o.work.Check {
		c.checks--
	}
	e := c.entries[o.name]
	if e == nil || e.work != o.work { // never: an entry with work is kept
		return
	}
	e.work, e.stale, e.lastWorked = nil, true, time.Now()
	if ctx.Err() != nil || o.work.unwanted {
		return
	}
	r := o.result
	if o.err != nil {
		r = &helmjob.Result{Reason: helmjob.Failed, TryAgain: true, Message: fmt.Sprintf("Helm's process did not do its work: %v.", o.err)}
	}
	if err := c.refresh(ctx, e); err != nil {
		c.logRefusal(e, err) // the next round tries again
	}
	if !r.Failed() {
		if r = c.recordSuccess(ctx, e, o.work, r); r == nil {
			return
		}
	}
	limit := backOff(e.chart)
	if o.work.Check {
		limit = defaultBackOff // the next check is due later anyway
	}
	e.tries = AfterFailure(e.tries, o.work.key, limit, r, e.release, time.Now(), c.o.FirstWait)
	c.log.Warn("Helm failed", "chart", o.name, "operation", string(o.work.Operation), "reason", string(r.Reason), "message", r.Message)
	c.emitEvent(ctx, e.chart, &Event{Warning: true, Reason: string(r.Reason), Message: r.Message})
}

// recordSuccess records a success. It returns a failure if the release is not in the expected state, which another
// client may have changed.
func (c *Controller) recordSuccess(ctx context.Context, e *entry, w *work, r *helmjob.Result) *helmjob.Result {
	c.log.Info("Helm is done", "chart", nameOf(e.chart), "operation", string(w.Operation), "action", string(r.Action), "message", r.Message)
	if w.Operation == helmjob.Uninstall {
		if e.release.Revision != 0 && !e.stale {
			return &helmjob.Result{Reason: helmjob.UninstallFailed, TryAgain: true,
				Message: "Helm has removed the release, and there is one again."}
		}
		return nil
	}
	if w.Check && (r.Release == nil || int64(r.Release.Revision) == e.chartWithStatus().Status.Revision) {
		if r.Action == helmjob.Recovered {
			c.emitEvent(ctx, e.chart, &Event{Reason: eventReason(r.Action), Message: r.Message})
		}
		e.tries = Tries{}
		return nil
	}
	status := e.view(c, time.Now()).working()
	status.ConfigHash, status.Reconciled, status.ChartDigest = w.Hash, w.reconciled, w.file
	if r.Release != nil {
		status.Revision = int64(r.Release.Revision)
	}
	e.status = status
	if r.Action != helmjob.Unchanged && r.Action != helmjob.Nothing {
		c.emitEvent(ctx, e.chart, &Event{Reason: eventReason(r.Action), Message: r.Message})
	}
	if v := e.view(c, time.Now()); !e.stale && v.Hash == w.Hash && !v.upToDate() {
		return &helmjob.Result{Reason: helmjob.Failed, TryAgain: true,
			Message: fmt.Sprintf("Helm has made revision %d of the release, and now revision %d is there, which is %s.", status.Revision,
				e.release.Revision, e.release.Status)}
	}
	e.tries = Tries{}
	return nil
}

func eventReason(a helmjob.Action) string {
	switch a {
	case helmjob.Installed:
		return "Installed"
	case helmjob.Upgraded:
		return "Upgraded"
	case helmjob.Recovered:
		return "Recovered"
	default:
		return "Done"
	}
}

func (c *Controller) emitEvent(ctx context.Context, chart *kinds.HelmChart, e *Event) {
	kind := corev1.EventTypeNormal
	if e.Warning {
		kind = corev1.EventTypeWarning
	}
	c.o.Recorder.Event(&corev1.ObjectReference{
		APIVersion: kinds.Charts().Resource.GroupVersion().String(), Kind: "HelmChart", Namespace: chart.Namespace, Name: chart.Name,
		UID: chart.UID, ResourceVersion: chart.ResourceVersion,
	}, kind, e.Reason, truncate.Text(e.Message, maxMessage))
}
