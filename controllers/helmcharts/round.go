// SPDX-License-Identifier: Apache-2.0

package helmcharts

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/kinds"
)

// entry is the state of a chart in this term.
type entry struct {
	chart  *kinds.HelmChart
	config *kinds.HelmChartConfig
	// status is the chart's status as this term has last written it. It has precedence over the object's, which may be
	// older.
	status *kinds.Status

	broken       string // why chart or config cannot be read
	releaseOwner string // the chart that owns the release instead of this one

	readDescription string // the description of chart and config when the rest was read
	stale           bool   // it has to be read again
	hash            string
	key             string
	problem         *Problem
	missing         string // as in View
	file            seenFile
	release         Release

	work          *work
	tries         Tries
	waits         time.Time     // since when it has waited for a child's slot; zero if it does not
	firstSeen     time.Time     // when this term first saw the chart
	every         time.Duration // interval of checks of its objects; 0 for never
	lastWorked    time.Time     // when Helm last ended an operation on the release in this term; zero for never
	unhealthy     bool
	loggedProblem string // the last logged error of the API
}

// work is an operation under way, and the function that cancels it.
type work struct {
	Work
	key        string
	reconciled string
	file       string // checksum of the chart's file
	cancel     context.CancelFunc
	unwanted   bool // it was ended on purpose
}

// workResult is the result of an operation that has ended.
type workResult struct {
	name   types.NamespacedName
	work   *work
	result *helmjob.Result
	err    error
}

func nameOf(c *kinds.HelmChart) types.NamespacedName {
	return types.NamespacedName{Namespace: c.Namespace, Name: c.Name}
}

// checkCharts checks each chart once. It returns the latest time of the next check. Zero means that charts are checked
// only when something changes.
func (c *Controller) checkCharts(ctx context.Context) (next time.Time) {
	soon := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	all := c.objects.listCharts()
	c.syncEntries(all)
	wanted := map[reference]bool{}
	secrets, configMaps := false, false
	for _, e := range c.entries {
		for _, ref := range referencesOf(e.chart, e.config) {
			wanted[ref] = true
		}
		secrets = secrets || e.chart.Spec.Driver != "configmap"
		configMaps = configMaps || e.chart.Spec.Driver == "configmap"
	}
	c.watches.setWatched(ctx, wanted, secrets, configMaps)
	for _, e := range c.slotOrder(all.charts) {
		if ctx.Err() != nil {
			break
		}
		if name := fileOf(e.chart); name != "" && e.chart.DeletionTimestamp == nil {
			moved, again := c.reader.files.follow(name, &e.file, c.o.FilesEvery, time.Now())
			e.stale = e.stale || moved
			soon(again)
		}
		if err := c.refresh(ctx, e); err != nil {
			c.logRefusal(e, err)
			soon(time.Now().Add(retryDelay))
			continue
		}
		again, err := c.act(ctx, e, Decide(e.view(c, time.Now())))
		if err != nil {
			c.logRefusal(e, err)
			again = time.Now().Add(retryDelay)
		} else {
			e.loggedProblem = ""
		}
		soon(again)
	}
	c.reportStatus()
	return next
}

// logRefusal logs that the API refused a request for a chart, which is tried again later. It logs a repeated error of a
// chart once.
func (c *Controller) logRefusal(e *entry, err error) {
	if apierrors.IsConflict(err) || errors.Is(err, context.Canceled) {
		return // the watch brings the newer object, or the term ends
	}
	if e.loggedProblem != err.Error() {
		e.loggedProblem = err.Error()
		c.log.Warn("a Helm chart cannot be reconciled; it is tried again", "chart", nameOf(e.chart), "error", err)
	}
}

func (c *Controller) syncEntries(all chartList) {
	others := findConflicts(all.charts)
	refs, releases := c.watches.changed()
	present := map[types.NamespacedName]bool{}
	for _, chart := range all.charts {
		if !Managed(chart) && !hasFinalizer(chart) {
			continue
		}
		name := nameOf(chart)
		present[name] = true
		e := c.entries[name]
		if e == nil || e.chart.UID != chart.UID { // a chart that was deleted and created again gets a new entry
			before := e
			e = &entry{stale: true, firstSeen: time.Now()}
			if before != nil {
				e.work = before.work
			}
			c.entries[name] = e
		}
		e.chart, e.config, e.broken, e.releaseOwner = chart, all.configs[name], all.broken[name], ""
		if other, taken := others[name]; taken {
			e.releaseOwner = other.String()
		}
		if seen := e.description(); seen != e.readDescription {
			e.readDescription, e.stale = seen, true
		}
		if releases[types.NamespacedName{Namespace: Target(chart), Name: chart.Name}] {
			e.stale = true
		}
		for _, ref := range referencesOf(chart, e.config) {
			e.stale = e.stale || refs[ref]
		}
	}
	for name, e := range c.entries {
		switch {
		case present[name]:
		case e.work != nil:
			e.work.unwanted = true
			e.work.cancel() // a client removed the finalizer
		default:
			delete(c.entries, name)
		}
	}
}

// description returns a text that changes with chart and config. It uses their generations and some annotations.
func (e *entry) description() string {
	s := fmt.Sprint(e.chart.UID, " ", e.chart.Generation, " ", e.chart.Annotations[Reconcile], " ", e.chart.Annotations[ReconcileEvery],
		" ", e.releaseOwner, " ", e.broken)
	if e.config != nil {
		s += fmt.Sprint(" ", e.config.UID, " ", e.config.Generation)
	}
	return s
}

// refresh reads the inputs and the release of a chart. While an operation is under way it does not read the release,
// which changes all the time.
func (c *Controller) refresh(ctx context.Context, e *entry) error {
	if !e.stale {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	unnamed := checkTarget(e.chart)
	if name := fileOf(e.chart); name != "" {
		e.file = seenFile{read: c.reader.files.stat(name)} // before it is read, so that a change meanwhile is noticed
	}
	switch {
	case e.chart.DeletionTimestamp != nil:
	case unnamed != nil:
		e.problem = unnamed
	case e.broken != "":
		e.problem = &Problem{string(helmjob.BadRequest), "This object has a value that is none of its field's: " + e.broken + "."}
	default:
		in, err := c.reader.inputs(ctx, e.chartWithStatus(), e.config)
		e.problem = asProblem(err)
		if err != nil && e.problem == nil {
			return err
		}
		in = cmp.Or(in, &inputs{})
		e.every, _ = c.reader.checkEvery(e.chart) // an error was reported as a problem above
		if e.hash, e.key, e.missing = in.hash, in.key, in.missing; e.missing != "" && e.file.read.err == nil {
			e.file = seenFile{} // it exists, and could not be read: it is tried again
		}
	}
	if e.work == nil {
		if unnamed != nil {
			e.release, e.stale = Release{}, false
			return nil
		}
		var err error
		if e.release, err = c.watches.release(ctx, e.chart.Spec.Driver, types.NamespacedName{Namespace: Target(e.chart),
			Name: e.chart.Name}); err != nil {
			return err
		}
	}
	e.stale = false
	return nil
}

// chartWithStatus returns the chart with its newest known status.
func (e *entry) chartWithStatus() *kinds.HelmChart {
	chart := *e.chart
	if e.status != nil {
		chart.Status = *e.status
	}
	return &chart
}

func (e *entry) view(c *Controller, now time.Time) *View {
	v := &View{Chart: e.chartWithStatus(), Hash: e.hash, Key: e.key, Problem: e.problem, Lacks: e.missing, Release: e.release,
		Tries: e.tries, Rival: e.releaseOwner, Now: now}
	v.NamespaceDeleted, v.NamespaceEnding = c.namespaceOf(Target(v.Chart))
	if e.work != nil {
		v.Work = &e.work.Work
	}
	switch {
	case e.every == 0:
	case e.lastWorked.IsZero():
		v.CheckAt = e.firstSeen.Add(min(e.every, firstCheck))
	default:
		v.CheckAt = e.lastWorked.Add(e.every)
	}
	return v
}

func (c *Controller) act(ctx context.Context, e *entry, d Decision) (again time.Time, err error) {
	requests, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	again = d.At
	waits := e.waits
	e.waits = time.Time{}
	switch d.Step {
	case AddFinalizer:
		return again, c.objects.addFinalizer(requests, e.chart)
	case RemoveFinalizers:
		if err := c.objects.removeFinalizers(requests, e.chart, Finalizer, k3sFinalizer); err != nil {
			return again, err
		}
		if d.Event != nil {
			c.emitEvent(ctx, e.chart, d.Event)
		}
	case Interrupt:
		e.work.unwanted = true
		e.work.cancel()
	case Apply, Check, Uninstall:
		if c.noSlot(d.Step) {
			e.waits = cmp.Or(waits, time.Now())
			for i := range d.Status.Conditions {
				// the condition stays unchanged until the objects are checked
				if r := &d.Status.Conditions[i]; r.Type == kinds.Ready && d.Step != Check {
					r.Reason, r.Message = ReasonWaiting, "Helm is at work on other charts."
				}
			}
			break
		}
		if err := c.start(ctx, e, d.Step); err != nil {
			p := asProblem(err)
			if p == nil {
				return again, err
			}
			// Errors in an archive are found when it is read.
			failure := &helmjob.Result{Reason: helmjob.Reason(p.Reason), Message: p.Message}
			e.tries = AfterFailure(e.tries, e.key, 0, failure, e.release, time.Now(), c.o.FirstWait)
			c.emitEvent(ctx, e.chart, &Event{Warning: true, Reason: p.Reason, Message: p.Message})
			d = Decide(e.view(c, time.Now()))
		}
	case NoStep:
	}
	if d.Status == nil {
		return again, nil
	}
	return again, c.writeStatus(requests, e, d.Status)
}

// writeStatus writes a chart's status if it differs.
func (c *Controller) writeStatus(ctx context.Context, e *entry, s *kinds.Status) error {
	e.unhealthy = false
	for _, cond := range s.Conditions {
		if cond.Type == kinds.Ready && cond.Status != metav1.ConditionTrue {
			switch cond.Reason {
			case ReasonWorking, ReasonWaiting, ReasonUninstalling, ReasonReleased:
			default:
				e.unhealthy = true
			}
		}
	}
	have := cmp.Or(e.status, &e.chart.Status)
	if statusText(have) == statusText(s) {
		return nil
	}
	if err := c.objects.status(ctx, e.chart, s); err != nil {
		return err
	}
	if lack := conditionOf(s, kinds.ChartAvailable); lack.Message != "" && lack.Message != conditionOf(have, kinds.ChartAvailable).Message {
		c.emitEvent(ctx, e.chart, &Event{Warning: true, Reason: lack.Reason, Message: lack.Message})
	}
	e.status = s
	return nil
}

func statusText(s *kinds.Status) string {
	out, err := json.Marshal(s)
	if err != nil { // never: it can be written as JSON
		return err.Error()
	}
	return string(out)
}

func (c *Controller) start(ctx context.Context, e *entry, step Step) error {
	w := &work{Work: Work{Operation: helmjob.Uninstall}, key: uninstallKey}
	q := &helmjob.Request{Operation: helmjob.Uninstall, Namespace: Target(e.chart), Release: e.chart.Name, Driver: e.chart.Spec.Driver}
	if e.chart.Spec.Timeout != nil {
		q.Timeout = max(0, e.chart.Spec.Timeout.Duration)
	}
	seal, err := c.seal(ctx)
	if err != nil {
		return err
	}
	if step != Uninstall {
		if q, err = c.prepare(ctx, e, w); err != nil {
			return err
		}
	}
	q.Seal = seal
	child, cancel := context.WithTimeout(ctx, processLimit(q.Timeout))
	w.cancel = cancel
	e.work = w
	c.running++
	if w.Check {
		c.checks++
	}
	name := nameOf(e.chart)
	c.log.Info("Helm begins", "chart", name, "operation", string(q.Operation))
	c.children.Go(func() {
		defer cancel()
		r, err := c.o.Engine(child, q)
		c.outcomes <- workResult{name: name, work: w, result: r, err: err}
	})
	return nil
}

// prepare makes the request, with the archive, which is not kept in memory.
func (c *Controller) prepare(ctx context.Context, e *entry, w *work) (*helmjob.Request, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	chart := e.chartWithStatus()
	if chart.Spec.ChartContent != "" {
		var err error
		if chart, err = c.objects.readChart(ctx, chart); err != nil {
			return nil, err
		}
	}
	in, err := c.reader.inputs(ctx, chart, e.config)
	if err != nil {
		return nil, err
	}
	v := e.view(c, time.Now())
	reconcile := e.chart.Annotations[Reconcile]
	in.request.Upgrade = v.changedByOthers() || reconcile != "" && reconcile != v.Chart.Status.Reconciled
	w.Operation, w.Hash, w.key, w.reconciled, w.file = helmjob.Apply, in.hash, in.key, reconcile, in.file
	if w.Check = v.upToDate() && v.Hash == in.hash; w.Check {
		w.key += ofCheck
	}
	return in.request, nil
}

// maxInterval limits the timeout of a chart. A longer one counts as this.
const maxInterval = 30 * 24 * time.Hour

// processLimit returns the longest time that a child may run. Helm's own timeout is for each hook and each wait. This
// limit is for a child that is stuck in something else.
func processLimit(timeout time.Duration) time.Duration {
	timeout = cmp.Or(timeout, helmjob.DefaultTimeout)
	return 10*min(timeout, maxInterval) + 5*time.Minute
}
