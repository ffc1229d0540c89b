// SPDX-License-Identifier: Apache-2.0

package helmcharts

import (
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/kinds"
	"github.com/coracle-k8s/coracle/internal/truncate"
)

const (
	// Finalizer keeps a deleted HelmChart until its release is removed.
	Finalizer = "coracle.dev/helm-release"
	// k3sFinalizer is on HelmCharts that come from a k3s cluster. No other controller would remove it here.
	k3sFinalizer = "wrangler.cattle.io/on-helm-chart-remove"
	// Unmanaged is k3s' annotation for a chart whose release must not be changed.
	Unmanaged = "helmcharts.helm.cattle.io/unmanaged"
	// ManagedBy is k3s' annotation that names the controller of the chart.
	ManagedBy = "helmcharts.cattle.io/managed-by"
	// Reconcile is an annotation. With each new value the chart is applied once more, with a newer version if it names
	// none.
	Reconcile = "coracle.dev/reconcile"

	// ReconcileEvery is an annotation: the interval at which the objects of a deployed release are checked, and
	// repaired if they differ from the chart's output.
	ReconcileEvery = "coracle.dev/reconcile-every"

	deployed = "deployed" // Helm's word
)

// managers are the values of ManagedBy for this controller. k3s writes the first.
var managers = []string{"helm-controller", "coracle"}

// Release is the newest revision of a release in the cluster. The zero Release is for none.
type Release struct {
	Revision int64
	Status   string // Helm's word
	// Deployed says that some revision of the release was deployed.
	Deployed bool
}

// Work is an operation under way.
type Work struct {
	Operation helmjob.Operation
	Hash      string // of the applied inputs
	// Check says that the operation only checks the objects of a deployed release.
	Check bool
}

// Problem is the reason for which a chart is not tried at all.
type Problem struct{ Reason, Message string }

// View is the input of a decision.
type View struct {
	Chart *kinds.HelmChart
	// Hash is a hash of everything that the release is made from. Key also covers what else a try depends on.
	Hash, Key string
	Problem   *Problem
	Release   Release
	// Lacks is a message that this server lacks the chart's file. It is "" if it has the file, or if the chart is not a
	// file.
	Lacks string
	// Rival is the chart that owns the release. It is "" if this chart does.
	Rival string
	// NamespaceDeleted and NamespaceEnding describe the target namespace.
	NamespaceDeleted, NamespaceEnding bool
	// Work is nil if no operation is under way.
	Work  *Work
	Tries Tries
	// CheckAt is when the objects of a deployed release are to be checked; zero for never.
	CheckAt time.Time
	Now     time.Time
}

// Step is the next step for a chart.
type Step int

// The steps.
const (
	NoStep           Step = iota // nothing, until something changes or until Decision.At
	AddFinalizer                 // add the finalizer to the chart
	Apply                        // start a child that applies the release
	Check                        // start a child that checks the objects of a deployed release
	Uninstall                    // start a child that removes the release
	Interrupt                    // end the running child
	RemoveFinalizers             // remove the finalizers
)

// Decision is a step with the status and the event to write.
type Decision struct {
	Step Step
	// At is when to decide again. Zero is for when something changes.
	At time.Time
	// Status is the chart's new status. nil leaves it unchanged.
	Status *kinds.Status
	// Event is written with the step RemoveFinalizers. nil is for none.
	Event *Event
}

// Event is the content of a Kubernetes Event about a chart.
type Event struct {
	Warning         bool
	Reason, Message string
}

// Reasons of conditions and events beside those of helmjob.
const (
	ReasonDeployed         = "Deployed"
	ReasonWorking          = "Working"
	ReasonWaiting          = "Waiting"
	ReasonNamespaceMissing = "NamespaceMissing"
	ReasonNamespaceEnding  = "NamespaceTerminating"
	ReasonNoChart          = "NoChart"
	ReasonReleaseTaken     = "ReleaseTaken"
	ReasonReleased         = "Unmanaged"
	ReasonUninstalled      = "Uninstalled"
	ReasonUninstalling     = "Uninstalling"
	ReasonFileMissing      = "ChartFileMissing"
	ReasonLeftBehind       = "LeftBehind"
)

// Target returns the namespace of a chart's release.
func Target(c *kinds.HelmChart) string {
	if c.Spec.TargetNamespace != "" {
		return c.Spec.TargetNamespace
	}
	return c.Namespace
}

// Managed reports whether this controller manages a chart. A chart without the annotation ManagedBy is managed.
func Managed(c *kinds.HelmChart) bool {
	if _, unmanaged := c.Annotations[Unmanaged]; unmanaged {
		return false
	}
	by, named := c.Annotations[ManagedBy]
	return !named || slices.Contains(managers, by)
}

// hasFinalizer reports whether a chart has a finalizer that this controller removes.
func hasFinalizer(c *kinds.HelmChart) bool {
	return slices.Contains(c.Finalizers, Finalizer) || slices.Contains(c.Finalizers, k3sFinalizer)
}

// Decide returns the decision about a chart.
func Decide(v *View) Decision {
	switch {
	case !Managed(v.Chart):
		return v.decideUnmanaged()
	case v.Chart.DeletionTimestamp != nil:
		return v.decideDeleted()
	default:
		return v.decideManaged()
	}
}

// decideUnmanaged releases a chart. An operation under way ends by itself.
func (v *View) decideUnmanaged() Decision {
	if v.Work != nil || !hasFinalizer(v.Chart) {
		return Decision{}
	}
	if by := v.Chart.Annotations[ManagedBy]; by != "" && !slices.Contains(managers, by) && !slices.Contains(v.Chart.Finalizers, Finalizer) {
		return Decision{} // k3s' finalizer belongs to that controller
	}
	return Decision{Step: RemoveFinalizers,
		Status: v.status(metav1.ConditionUnknown, ReasonReleased, "This HelmChart is not managed; its release stays as it is.", false),
		Event:  &Event{Reason: ReasonReleased, Message: "The release is not managed by this HelmChart any more and stays as it is."}}
}

// decideDeleted uninstalls the release of a deleted chart, and then removes the finalizers.
func (v *View) decideDeleted() Decision {
	name := Target(v.Chart) + "/" + v.Chart.Name
	switch {
	case !hasFinalizer(v.Chart):
		return Decision{}
	case v.Work != nil && v.Work.Operation == helmjob.Apply:
		return Decision{Step: Interrupt}
	case v.Work != nil:
		return Decision{Status: v.status(metav1.ConditionFalse, ReasonUninstalling, "The release is being removed.", false)}
	case v.Rival != "":
		return Decision{Step: RemoveFinalizers, Event: &Event{Reason: ReasonReleaseTaken,
			Message: fmt.Sprintf("The release %s belongs to the HelmChart %s, and stays.", name, v.Rival)}}
	case v.NamespaceDeleted:
		return Decision{Step: RemoveFinalizers, Event: &Event{Warning: true, Reason: ReasonLeftBehind, Message: fmt.Sprintf(
			"The release went with its namespace %s. Objects of the chart that are in no namespace or in another one are still there, if "+
				"it had any.", Target(v.Chart))}}
	case v.Release.Revision == 0:
		return Decision{Step: RemoveFinalizers,
			Event: &Event{Reason: ReasonUninstalled, Message: "The release " + name + " is not there (any more)."}}
	}
	limit := uninstallTries
	if v.NamespaceEnding {
		limit = 1 // the namespace's deletion removes the rest, and its objects may not be changed any more
	}
	if v.Tries.Key == uninstallKey && v.Tries.Count >= limit {
		return Decision{Step: RemoveFinalizers, Event: &Event{Warning: true, Reason: ReasonLeftBehind, Message: fmt.Sprintf(
			"The release %s could not be removed (tried %s) and is left behind; `helm uninstall -n %s %s` tries it once more. The last error: %s",
			name, timesText(v.Tries.Count), Target(v.Chart), v.Chart.Name, v.Tries.Message)}}
	}
	if v.Tries.Key == uninstallKey && v.Now.Before(v.Tries.Next) {
		return Decision{At: v.Tries.Next, Status: v.status(metav1.ConditionFalse, v.Tries.Reason,
			fmt.Sprintf("Removing the release failed (%d of %d tries). %s", v.Tries.Count, limit, v.Tries.Message), false)}
	}
	return Decision{Step: Uninstall, Status: v.status(metav1.ConditionFalse, ReasonUninstalling, "The release is being removed.", false)}
}

// decideManaged installs, upgrades or checks the release of a chart.
func (v *View) decideManaged() Decision {
	c := v.Chart
	switch {
	case v.Work != nil && v.Work.Operation == helmjob.Apply && v.Work.Hash != v.Hash && v.Problem == nil && !v.Release.Deployed:
		// A first installation that is not wanted any more. An upgrade is not interrupted, since its hooks may be
		// changing a user's data.
		return Decision{Step: Interrupt}
	case v.Work != nil && v.Work.Check && v.upToDate() && v.Problem == nil:
		return Decision{Status: v.deployed()}
	case v.Work != nil:
		return Decision{Status: v.working()}
	case v.Problem != nil:
		return Decision{Status: v.status(metav1.ConditionFalse, v.Problem.Reason, v.Problem.Message, true)}
	case v.Rival != "":
		return Decision{Status: v.status(metav1.ConditionFalse, ReasonReleaseTaken, fmt.Sprintf(
			"The release %s/%s belongs to the HelmChart %s, which is older. Give this one another name or targetNamespace.", Target(c),
			c.Name, v.Rival), true)}
	case v.NamespaceEnding:
		return Decision{Status: v.status(metav1.ConditionFalse, ReasonNamespaceEnding, "The namespace "+Target(c)+" is being deleted.",
			false)}
	case v.NamespaceDeleted && !c.Spec.CreateNamespace:
		return Decision{Status: v.status(metav1.ConditionFalse, ReasonNamespaceMissing,
			"There is no namespace "+Target(c)+": make it, or set createNamespace to true.", false)}
	case !slices.Contains(c.Finalizers, Finalizer):
		return Decision{Step: AddFinalizer}
	case v.upToDate():
		return v.check()
	}
	t := &v.Tries
	if t.Key != v.Key || t.Final && t.FailedRelease != v.Release {
		t = &Tries{} // something has changed, or a user has changed the release
	}
	switch {
	case t.Final:
		return Decision{Status: v.status(metav1.ConditionFalse, t.Reason, t.Message, true)}
	case v.Now.Before(t.Next):
		return Decision{At: t.Next, Status: v.status(metav1.ConditionFalse, t.Reason,
			fmt.Sprintf("%s It is tried again (failed %s so far).", t.Message, timesText(t.Count)), false)}
	}
	return Decision{Step: Apply, Status: v.working()}
}

// deployed returns the status of a release that matches the chart. The last check of its objects may have failed.
func (v *View) deployed() *kinds.Status {
	c := v.Chart
	if v.Tries.Key == v.Key+ofCheck && !v.CheckAt.IsZero() {
		return v.status(metav1.ConditionFalse, v.Tries.Reason,
			fmt.Sprintf("Revision %d of the release %s/%s is deployed, and its objects could not be checked: %s It is tried again "+
				"(failed %s so far).",
				v.Release.Revision, Target(c), c.Name, v.Tries.Message, timesText(v.Tries.Count)), false)
	}
	return v.status(metav1.ConditionTrue, ReasonDeployed, fmt.Sprintf("Revision %d of the release %s/%s is deployed.", v.Release.Revision,
		Target(c), c.Name), false)
}

// check starts a check of the objects of a deployed release, if it is requested and due. Helm needs the chart's file
// for it.
func (v *View) check() Decision {
	at := v.CheckAt
	if v.Tries.Key == v.Key+ofCheck && !v.Tries.Final && v.Tries.Next.Before(at) {
		at = v.Tries.Next
	}
	switch {
	case v.CheckAt.IsZero() || v.Lacks != "":
		return Decision{Status: v.deployed()}
	case v.Now.Before(at):
		return Decision{At: at, Status: v.deployed()}
	}
	return Decision{Step: Check, Status: v.deployed()}
}

// upToDate reports whether coracle applied the release, and it matches the chart.
func (v *View) upToDate() bool {
	s := v.Chart.Status
	return v.Release.Status == deployed && s.ConfigHash == v.Hash && s.Revision == v.Release.Revision &&
		s.Reconciled == v.Chart.Annotations[Reconcile]
}

// changedByOthers reports whether another client made the newest revision after coracle's.
func (v *View) changedByOthers() bool {
	s := v.Chart.Status
	return v.Release.Status == deployed && s.ConfigHash == v.Hash && s.Revision != 0 && s.Revision != v.Release.Revision &&
		conditionOf(&s, kinds.Ready).Reason == ReasonDeployed
}

// conditionOf returns the condition of a type, or the zero condition if there is none.
func conditionOf(s *kinds.Status, of string) metav1.Condition {
	for _, c := range s.Conditions {
		if c.Type == of {
			return c
		}
	}
	return metav1.Condition{}
}

func (v *View) working() *kinds.Status {
	return v.status(metav1.ConditionFalse, ReasonWorking, "Helm is at work on the release.", false)
}

// status returns the chart's status with new conditions. failed says that there is no further try.
func (v *View) status(ready metav1.ConditionStatus, reason, message string, failed bool) *kinds.Status {
	s := v.Chart.Status
	s.Conditions = nil
	began := metav1.Condition{Type: kinds.JobCreated, Status: metav1.ConditionFalse, Reason: "NotStarted"}
	if s.ConfigHash != "" || reason == ReasonWorking || v.Tries.Count > 0 {
		began.Status, began.Reason, began.Message = metav1.ConditionTrue, "Started", "Helm runs in a process of the leading server; "+
			"there is no Job."
	}
	bad := metav1.Condition{Type: kinds.Failed, Status: metav1.ConditionFalse, Reason: "NotFailed"}
	if failed {
		bad.Status, bad.Reason, bad.Message = metav1.ConditionTrue, reason, truncate.Text(message, maxMessage)
	}
	all := []metav1.Condition{began, bad, {Type: kinds.Ready, Status: ready, Reason: reason, Message: truncate.Text(message, maxMessage),
		ObservedGeneration: v.Chart.Generation}}
	if v.Lacks != "" && v.Chart.DeletionTimestamp == nil && Managed(v.Chart) {
		all = append(all, metav1.Condition{Type: kinds.ChartAvailable, Status: metav1.ConditionFalse, Reason: ReasonFileMissing,
			Message: truncate.Text(v.Lacks+
				" The release stays as it is, and cannot be changed until that server has the file: put it on every server.", maxMessage)})
	}
	for _, c := range all {
		c.LastTransitionTime = metav1.NewTime(v.Now.Truncate(time.Second))
		for _, was := range v.Chart.Status.Conditions {
			if was.Type == c.Type && was.Status == c.Status && !was.LastTransitionTime.IsZero() {
				c.LastTransitionTime = was.LastTransitionTime
			}
		}
		s.Conditions = append(s.Conditions, c)
	}
	return &s
}

// maxMessage limits the text of a condition or an event, in bytes. The API accepts 1,024 bytes for an event.
const maxMessage = 1000
