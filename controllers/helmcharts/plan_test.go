// SPDX-License-Identifier: Apache-2.0

package helmcharts

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/kinds"
	"github.com/coracle-k8s/coracle/test/testenv"
)

var testNow = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// installed is a chart whose first revision is deployed and known to be.
func installed(change ...func(*View)) *View {
	v := &View{
		Chart: &kinds.HelmChart{
			ObjectMeta: metav1.ObjectMeta{Namespace: "apps", Name: "web", Generation: 3, Finalizers: []string{Finalizer}},
			Spec:       kinds.ChartSpec{Chart: "web", Repo: "https://charts.example", TargetNamespace: "prod"},
			Status:     kinds.Status{Revision: 1, ConfigHash: "hash"},
		},
		Hash: "hash", Key: "key", Release: Release{Revision: 1, Status: deployed, Deployed: true}, Now: testNow,
	}
	for _, f := range change {
		f(v)
	}
	return v
}

func withoutRelease(v *View) { v.Release, v.Chart.Status = Release{}, kinds.Status{} }

func removed(v *View) { v.Chart.DeletionTimestamp = &metav1.Time{Time: testNow} }

func annotated(key, value string) func(*View) {
	return func(v *View) { v.Chart.Annotations = map[string]string{key: value} }
}

func released(revision int64, status string) func(*View) {
	return func(v *View) { v.Release.Revision, v.Release.Status = revision, status }
}

func working(op helmjob.Operation, hash string) func(*View) {
	return func(v *View) { v.Work = &Work{Operation: op, Hash: hash} }
}

func failed(t Tries) func(*View) { return func(v *View) { v.Tries = t } }

func checked(at time.Duration) func(*View) { return func(v *View) { v.CheckAt = testNow.Add(at) } }

func checking(v *View) { v.Work = &Work{Operation: helmjob.Apply, Hash: "hash", Check: true} }

func lacking(v *View) { v.Lacks = "The server node-2, which leads, has no file." }

func rival(v *View) { v.Rival = "other/web" }

// TestOldestChartOwnsTheRelease: of the charts with one release the oldest has it, and those that are not managed have
// none.
func TestOldestChartOwnsTheRelease(t *testing.T) {
	chart := func(namespace, target string, age time.Duration, change ...func(*kinds.HelmChart)) *kinds.HelmChart {
		c := &kinds.HelmChart{Spec: kinds.ChartSpec{TargetNamespace: target}}
		c.Namespace, c.Name, c.CreationTimestamp = namespace, "web", metav1.NewTime(testNow.Add(-age))
		for _, f := range change {
			f(c)
		}
		return c
	}
	got := findConflicts([]*kinds.HelmChart{
		chart("a", "prod", time.Minute), chart("b", "prod", time.Hour), chart("prod", "", time.Minute), chart("c", "other", 0),
		chart("d", "prod", 2*time.Hour, func(c *kinds.HelmChart) { c.Annotations = map[string]string{Unmanaged: ""} }),
		chart("e", "prod", 2*time.Hour, func(c *kinds.HelmChart) { c.Spec.Driver = "configmap" }),
		chart("f", "prod", 2*time.Hour, func(c *kinds.HelmChart) { c.Name = "db" }),
	})
	b := types.NamespacedName{Namespace: "b", Name: "web"}
	if len(got) != 2 || got[types.NamespacedName{Namespace: "a", Name: "web"}] != b || got[types.NamespacedName{Namespace: "prod", Name: "web"}] != b {
		t.Errorf("rivals are %v", got)
	}
}

// TestProcessLimitIsLongerThanTheTimeout: a process gets some time with every timeout.
func TestProcessLimitIsLongerThanTheTimeout(t *testing.T) {
	for timeout, want := range map[time.Duration]time.Duration{
		0: 55 * time.Minute, time.Second: 5*time.Minute + 10*time.Second, math.MaxInt64: 10*maxInterval + 5*time.Minute,
	} {
		testenv.Equal(t, processLimit(timeout), want, "with a timeout of %s it is", timeout)
	}
}

func TestDecideNamesNextStepAndCondition(t *testing.T) {
	early := testNow.Add(time.Minute)
	for _, tc := range []struct {
		name  string
		view  *View
		want  Step
		at    time.Time
		ready string // reason and beginning of the message of the condition Ready; "" for no status
		event string // reason
	}{
		{name: "done", view: installed(), ready: "Deployed Revision 1 of the release prod/web"},
		{name: "new", view: installed(withoutRelease, func(v *View) { v.Chart.Finalizers = nil }), want: AddFinalizer},
		{name: "claimed", view: installed(withoutRelease), want: Apply, ready: "Working"},
		{name: "other values", view: installed(func(v *View) { v.Hash = "other" }), want: Apply, ready: "Working"},
		{name: "a release of that name by another owner", view: installed(func(v *View) { v.Chart.Status = kinds.Status{} }), want: Apply, ready: "Working"},
		{name: "at work", view: installed(working(helmjob.Apply, "hash")), ready: "Working"},
		{name: "an upgrade is at work, with values of before", view: installed(working(helmjob.Apply, "before")), ready: "Working"},
		{name: "a first installation is at work, with values of before", view: installed(withoutRelease, working(helmjob.Apply, "before")), want: Interrupt},

		{name: "left pending", view: installed(released(2, "pending-upgrade")), want: Apply, ready: "Working"},
		{name: "left uninstalling", view: installed(released(1, "uninstalling")), want: Apply, ready: "Working"},
		{name: "failed", view: installed(released(2, "failed")), want: Apply, ready: "Working"},
		{name: "uninstalled by hand", view: installed(func(v *View) { v.Release = Release{} }), want: Apply, ready: "Working"},
		{name: "upgraded by hand", view: installed(released(2, deployed)), want: Apply, ready: "Working"},
		{name: "asked to reconcile", view: installed(annotated(Reconcile, "now")), want: Apply, ready: "Working"},
		{name: "asked to reconcile, and done", view: installed(annotated(Reconcile, "now"), func(v *View) { v.Chart.Status.Reconciled = "now" }), ready: "Deployed"},

		{name: "a problem", view: installed(func(v *View) { v.Problem = &Problem{"SecretMissing", "There is no Secret."} }), ready: "SecretMissing There is no Secret."},
		{name: "no namespace", view: installed(withoutRelease, func(v *View) { v.NamespaceDeleted = true }), ready: "NamespaceMissing"},
		{name: "no namespace, which is made", view: installed(withoutRelease, func(v *View) { v.NamespaceDeleted, v.Chart.Spec.CreateNamespace = true, true }), want: Apply, ready: "Working"},
		{name: "a namespace that ends", view: installed(func(v *View) { v.NamespaceEnding = true }), ready: "NamespaceTerminating"},

		{name: "failed a moment ago", view: installed(released(2, "failed"), failed(Tries{Key: "key", Count: 2, Next: early, Reason: "HookFailed", Message: "It is so."})),
			at: early, ready: "HookFailed It is so. It is tried again (failed 2 times so far)."},
		{name: "failed a while ago", view: installed(released(2, "failed"), failed(Tries{Key: "key", Count: 2, Next: testNow})), want: Apply, ready: "Working"},
		{name: "failed with other values", view: installed(released(2, "failed"), failed(Tries{Key: "before", Count: 2, Next: early})), want: Apply, ready: "Working"},
		{name: "given up", view: installed(released(2, "failed"),
			failed(Tries{Key: "key", Count: 2, Final: true, Reason: "Aborted", Message: "No.", FailedRelease: Release{2, "failed", true}})), ready: "Aborted No."},
		{name: "given up, with other values", view: installed(released(2, "failed"),
			failed(Tries{Key: "before", Final: true, FailedRelease: Release{2, "failed", true}})), want: Apply, ready: "Working"},
		{name: "given up, and a user has rolled back", view: installed(released(3, deployed), func(v *View) { v.Chart.Status.ConfigHash = "before" },
			failed(Tries{Key: "key", Final: true, FailedRelease: Release{2, "failed", true}})), want: Apply, ready: "Working"},

		{name: "without its file", view: installed(lacking), ready: "Deployed Revision 1 of the release prod/web"},
		{name: "without its file, and it has failed", view: installed(lacking, released(2, "failed")), want: Apply, ready: "Working"},

		{name: "objects to be looked at later", view: installed(checked(time.Minute)), at: early, ready: "Deployed"},
		{name: "objects to be looked at", view: installed(checked(0)), want: Check, ready: "Deployed"},
		{name: "objects to be looked at, without its file", view: installed(checked(0), lacking), ready: "Deployed"},
		{name: "objects to be looked at, and other values", view: installed(checked(0), func(v *View) { v.Hash = "other" }), want: Apply, ready: "Working"},
		{name: "objects are looked at", view: installed(checked(0), checking), ready: "Deployed"},
		{name: "objects are looked at, and there are other values", view: installed(checked(0), checking, func(v *View) { v.Hash = "other" }), ready: "Working"},
		{name: "objects could not be looked at", view: installed(checked(time.Hour), failed(Tries{Key: "key check", Count: 1, Next: early, Reason: "UpgradeFailed", Message: "It is so."})), at: early,
			ready: "UpgradeFailed Revision 1 of the release prod/web is deployed, and its objects could not be checked: It is so. It is tried again (failed once so far)."},
		{name: "objects could not be looked at, a while ago", view: installed(checked(time.Hour), failed(Tries{Key: "key check", Count: 1, Next: testNow, Reason: "UpgradeFailed"})), want: Check, ready: "UpgradeFailed"},
		{name: "objects cannot be looked at", view: installed(checked(2*time.Minute), failed(Tries{Key: "key check", Count: 1, Next: early, Final: true, Reason: "Failed"})), at: early.Add(time.Minute), ready: "Failed"},
		{name: "objects could not be looked at, and need not be", view: installed(failed(Tries{Key: "key check", Count: 1, Next: early, Reason: "Failed"})), ready: "Deployed"},

		{name: "deleted", view: installed(removed), want: Uninstall, ready: "Uninstalling"},
		{name: "deleted, nothing to take away", view: installed(removed, withoutRelease), want: RemoveFinalizers, event: "Uninstalled"},
		{name: "deleted, without a finalizer of ours", view: installed(removed, func(v *View) { v.Chart.Finalizers = []string{"example.com/other"} })},
		{name: "deleted, with k3s' finalizer alone", view: installed(removed, func(v *View) { v.Chart.Finalizers = []string{k3sFinalizer} }), want: Uninstall, ready: "Uninstalling"},
		{name: "deleted while an installation is at work", view: installed(removed, working(helmjob.Apply, "hash")), want: Interrupt},
		{name: "deleted, at work", view: installed(removed, working(helmjob.Uninstall, "")), ready: "Uninstalling"},
		{name: "deleted, with its namespace gone", view: installed(removed, func(v *View) { v.NamespaceDeleted = true }), want: RemoveFinalizers, event: "LeftBehind"},
		{name: "deleted, with a problem", view: installed(removed, func(v *View) { v.Problem = &Problem{"SecretMissing", ""} }), want: Uninstall, ready: "Uninstalling"},
		{name: "deleted, failed", view: installed(removed, failed(Tries{Key: uninstallKey, Count: 1, Next: early, Reason: "UninstallFailed", Message: "It is so."})), at: early,
			ready: "UninstallFailed Removing the release failed (1 of 3 tries). It is so."},
		{name: "deleted, failed too often", view: installed(removed, failed(Tries{Key: uninstallKey, Count: 3, Next: early})), want: RemoveFinalizers, event: "LeftBehind"},
		{name: "deleted with its namespace, failed once", view: installed(removed, func(v *View) { v.NamespaceEnding = true }, failed(Tries{Key: uninstallKey, Count: 1, Next: early})),
			want: RemoveFinalizers, event: "LeftBehind"},

		{name: "another chart's release", view: installed(rival), ready: "ReleaseTaken The release prod/web belongs to the HelmChart other/web, which is older."},
		{name: "another chart's release, at work", view: installed(rival, working(helmjob.Apply, "hash")), ready: "Working"},
		{name: "deleted, and the release is another chart's", view: installed(removed, rival), want: RemoveFinalizers, event: "ReleaseTaken"},

		{name: "unmanaged", view: installed(annotated(Unmanaged, "")), want: RemoveFinalizers, ready: "Unmanaged", event: "Unmanaged"},
		{name: "unmanaged, at work", view: installed(annotated(Unmanaged, "true"), working(helmjob.Apply, "hash"))},
		{name: "unmanaged, free", view: installed(annotated(Unmanaged, "true"), func(v *View) { v.Chart.Finalizers = nil })},
		{name: "unmanaged and deleted", view: installed(removed, annotated(Unmanaged, "true")), want: RemoveFinalizers, ready: "Unmanaged", event: "Unmanaged"},
		{name: "k3s' own annotation", view: installed(annotated(ManagedBy, "helm-controller")), ready: "Deployed"},
		{name: "another manager's chart", view: installed(annotated(ManagedBy, "fleet"), func(v *View) { v.Chart.Finalizers = []string{k3sFinalizer} })},
		{name: "another manager's chart now", view: installed(annotated(ManagedBy, "fleet")), want: RemoveFinalizers, ready: "Unmanaged", event: "Unmanaged"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := Decide(tc.view)
			testenv.False(t, d.Step != tc.want || !d.At.Equal(tc.at), "step %d at %s, want %d at %s", d.Step, d.At, tc.want, tc.at)
			ready := ""
			if d.Status != nil {
				c := meta.FindStatusCondition(d.Status.Conditions, kinds.Ready)
				ready = c.Reason + " " + c.Message
			}
			testenv.False(t, tc.ready == "" && ready != "" || !strings.HasPrefix(ready, tc.ready), "it says %q, want %q", ready, tc.ready)
			if event := ""; d.Event != nil || tc.event != "" {
				if d.Event != nil {
					event = d.Event.Reason
				}
				testenv.Equal(t, event, tc.event, "event")
			}
		})
	}
}

// TestConditionsMeanWhatTheyMeanInK3s: k3s' conditions mean what they mean there, and a condition that stays has the
// time of its beginning.
func TestConditionsMeanWhatTheyMeanInK3s(t *testing.T) {
	of := func(v *View, kind string) metav1.ConditionStatus {
		return meta.FindStatusCondition(Decide(v).Status.Conditions, kind).Status
	}
	for _, tc := range []struct {
		name                     string
		view                     *View
		jobCreated, failed, done metav1.ConditionStatus
	}{
		{"done", installed(), "True", "False", "True"},
		{"a problem from the beginning", installed(withoutRelease, func(v *View) { v.Problem = &Problem{"NoChart", ""} }), "False", "True", "False"},
		{"at work", installed(withoutRelease, working(helmjob.Apply, "hash")), "True", "False", "False"},
		{"to be tried again", installed(withoutRelease, failed(Tries{Key: "key", Count: 1, Next: testNow.Add(time.Hour)})), "True", "False", "False"},
		{"given up", installed(withoutRelease, failed(Tries{Key: "key", Count: 1, Final: true})), "True", "True", "False"},
	} {
		if a, b, c := of(tc.view, kinds.JobCreated), of(tc.view, kinds.Failed), of(tc.view, kinds.Ready); a != tc.jobCreated || b != tc.failed || c != tc.done {
			t.Errorf("%s: JobCreated %s, Failed %s, Ready %s; want %s, %s, %s", tc.name, a, b, c, tc.jobCreated, tc.failed, tc.done)
		}
	}

	v := installed()
	v.Chart.Status = *Decide(v).Status
	v.Now = testNow.Add(time.Hour)
	if c := meta.FindStatusCondition(Decide(v).Status.Conditions, kinds.Ready); !c.LastTransitionTime.Time.Equal(testNow) || c.ObservedGeneration != 3 {
		t.Errorf("the condition is of %s and generation %d", c.LastTransitionTime, c.ObservedGeneration)
	}
	testenv.Equal(t, statusText(Decide(v).Status), statusText(&v.Chart.Status), "at rest the status would be written again:")
}

// TestMissingChartFileIsReportedByTheLeader: a server that leads and lacks a chart's file says so beside what is known
// of the release, while the release is the chart's matter.
func TestMissingChartFileIsReportedByTheLeader(t *testing.T) {
	describe := func(change ...func(*View)) string {
		s := Decide(installed(change...)).Status
		c := conditionOf(s, kinds.ChartAvailable)
		return strings.TrimSpace(fmt.Sprint(c.Status, " ", c.Reason, " ", c.Message))
	}
	if got, want := describe(lacking), "False ChartFileMissing The server node-2, which leads, has no file. The release stays as it is"; !strings.HasPrefix(got, want) {
		t.Errorf("it says %q", got)
	}
	for name, v := range map[string][]func(*View){
		"a server that has it": {}, "a chart that is removed": {lacking, removed}, "a chart that is unmanaged": {lacking, annotated(Unmanaged, "")},
	} {
		testenv.Equal(t, describe(v...), "", "%s: it says", name)
	}
	v := installed(lacking, func(v *View) { v.Chart.Status.ChartDigest = "digest" })
	v.Chart.Status = *Decide(v).Status
	if statusText(Decide(v).Status) != statusText(&v.Chart.Status) || v.Chart.Status.ChartDigest != "digest" {
		t.Errorf("at rest the status would be written again: %+v", v.Chart.Status)
	}
}

func TestFailedReleasesAreRetriedWithBackOff(t *testing.T) {
	fails := &helmjob.Result{Reason: helmjob.HookFailed, Message: "It is so.", TryAgain: true}
	var now Tries
	var waits []time.Duration
	for range 9 {
		now = AfterFailure(now, "key", defaultBackOff, fails, Release{}, testNow, firstWait)
		waits = append(waits, now.Next.Sub(testNow)/time.Second)
	}
	for i, want := range []time.Duration{5, 10, 20, 40, 80, 160, 300, 300, 300} {
		testenv.False(t, waits[i] != want, "after %d failures: %d s, want %d s", i+1, waits[i], want)
	}
	for range 100 { // and no number gets too large for its type
		now = AfterFailure(now, "key", defaultBackOff, fails, Release{}, testNow, firstWait)
	}
	testenv.False(t, now.Final || now.Next.Sub(testNow) != lastWait, "after %d failures: %+v", now.Count, now)
	if other := AfterFailure(now, "other", 0, fails, Release{}, testNow, firstWait); other.Count != 1 || !other.Final || !strings.HasPrefix(other.Message, "Given up after one try. ") {
		t.Errorf("without a second try: %+v", other)
	}
	testenv.True(t, AfterFailure(Tries{}, "key", defaultBackOff, &helmjob.Result{Reason: helmjob.InvalidValues}, Release{}, testNow, firstWait).Final, "what cannot succeed is tried again")
	if removal := AfterFailure(Tries{}, uninstallKey, 0, &helmjob.Result{Reason: helmjob.UninstallFailed}, Release{}, testNow, firstWait); removal.Final {
		t.Error("a removal is not tried again")
	}
}
