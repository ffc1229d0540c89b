// SPDX-License-Identifier: Apache-2.0

package console

import (
	"cmp"
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
)

// judge adds what is wrong with an object. young says that the object may not have become what it should be yet. It
// reports whether the object has the condition Ready.
type judge func(c *check, o *checkedObject, base finding, young bool) (ready bool)

// judgesByKind has the kinds that are not judged by the condition Ready alone.
var judgesByKind = map[string]judge{
	"nodes.":                  judgeNode,
	"persistentvolumes.":      judgeVolume,
	"replicationcontrollers.": judgeReplicas,
	"services.":               judgeService,
	"endpointslices." + discoveryv1.GroupName:                  judgeSlice,
	"deployments." + appsv1.GroupName:                          judgeDeployment,
	"statefulsets." + appsv1.GroupName:                         judgeReplicas,
	"replicasets." + appsv1.GroupName:                          judgeReplicas,
	"daemonsets." + appsv1.GroupName:                           judgeDaemonSet,
	"jobs." + batchv1.GroupName:                                judgeJob,
	"horizontalpodautoscalers." + autoscalingv2.GroupName:      judgeAutoscaler,
	"poddisruptionbudgets." + policyv1.GroupName:               judgeBudget,
	"ingresses." + networkingv1.GroupName:                      judgeIngress,
	"apiservices.apiregistration.k8s.io":                       judgeAPIService,
	"mutatingwebhookconfigurations." + admissionv1.GroupName:   judgeWebhooks,
	"validatingwebhookconfigurations." + admissionv1.GroupName: judgeWebhooks,
	"gateways.gateway.networking.k8s.io":                       judgeGateway,
	"httproutes.gateway.networking.k8s.io":                     judgeRoute,
	"grpcroutes.gateway.networking.k8s.io":                     judgeRoute,
	"tlsroutes.gateway.networking.k8s.io":                      judgeRoute,
	"tcproutes.gateway.networking.k8s.io":                      judgeRoute,
	"udproutes.gateway.networking.k8s.io":                      judgeRoute,
}

// condition is a status condition in the form that all kinds share.
type condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// text returns the condition's own words.
func (x *condition) text() string { return cmp.Or(x.Message, x.Reason) }

// parse reads a spec or a status. Kubernetes' own kinds have the form that it expects; another one has no findings.
func parse[T any](text json.RawMessage) (out T) {
	if json.Unmarshal(text, &out) != nil {
		var empty T
		return empty
	}
	return out
}

// conditionsOf returns the conditions of a status. Custom objects may have something else there.
func conditionsOf(status json.RawMessage) []condition {
	s := parse[struct {
		Conditions []json.RawMessage `json:"conditions"`
	}](status)
	var out []condition
	for _, text := range s.Conditions {
		if x := parse[condition](text); x.Type != "" {
			out = append(out, x)
		}
	}
	return out
}

func find(all []condition, kind string) *condition {
	if i := slices.IndexFunc(all, func(x condition) bool { return x.Type == kind }); i >= 0 {
		return &all[i]
	}
	return nil
}

func judgeCustom(c *check, o *checkedObject, base finding, young bool) bool {
	x := find(conditionsOf(o.Status), "Ready")
	if x == nil {
		return false
	}
	if x.Status == "False" && !young {
		c.add(base, "condition", false, aboutName(x.Type), withText(x.text()))
	} else if x.Status == "Unknown" && !young {
		c.add(base, "condition", true, aboutName(x.Type), withText(x.text()))
	}
	return true
}

// badWhenTrue are the conditions of nodes that say that something is wrong: Kubernetes' own, and those of the
// node-problem-detector. Others, such as EtcdIsVoter, are good when they are true.
var badWhenTrue = regexp.MustCompile(`Pressure$|Unavailable$|Deadlock$|Unhealthy$|^ReadonlyFilesystem$|^Frequent`)

func judgeNode(c *check, o *checkedObject, base finding, young bool) bool {
	all := conditionsOf(o.Status)
	for i := range all {
		if x := &all[i]; x.Status == "True" && badWhenTrue.MatchString(x.Type) && !young {
			c.add(base, "condition", false, aboutName(x.Type), withText(x.text()))
		}
	}
	return false
}

func judgeVolume(c *check, o *checkedObject, base finding, _ bool) bool {
	if s := parse[corev1.PersistentVolumeStatus](o.Status); s.Phase == corev1.VolumeFailed {
		c.add(base, "condition", false, aboutName(string(s.Phase)), withText(s.Message))
	}
	return false
}

// replicas has the status fields of Deployments, StatefulSets, ReplicaSets and ReplicationControllers.
type replicas struct {
	Replicas      int32       `json:"replicas"`
	ReadyReplicas int32       `json:"readyReplicas"`
	Conditions    []condition `json:"conditions"`
}

type replicaSpec struct {
	Replicas *int32 `json:"replicas"`
	Paused   bool   `json:"paused"`
}

func (w replicaSpec) count() int32 {
	if w.Replicas == nil {
		return 1
	}
	return *w.Replicas
}

// judgeReplicas judges a kind that wants a number of pods. One with an owner is the owner's business.
func judgeReplicas(c *check, o *checkedObject, base finding, young bool) bool {
	if controlledBy(o.Metadata.OwnerReferences, "") == "" {
		c.judgeNumber(o, base, young)
	}
	return false
}

func (c *check) judgeNumber(o *checkedObject, base finding, young bool) {
	s, want := parse[replicas](o.Status), parse[replicaSpec](o.Spec).count()
	if x := find(s.Conditions, "ReplicaFailure"); x != nil && x.Status == "True" {
		c.add(base, "cannotMake", false, withText(x.text()), withCounts(s.ReadyReplicas, want))
	} else if s.ReadyReplicas < want && !young {
		c.add(base, "unavailable", s.ReadyReplicas > 0, withCounts(s.ReadyReplicas, want))
	}
}

func judgeDeployment(c *check, o *checkedObject, base finding, young bool) bool {
	n := len(c.findings)
	c.judgeNumber(o, base, young)
	x := find(conditionsOf(o.Status), "Progressing")
	if x != nil && x.Status == "False" && (len(c.findings) == n || c.findings[n].What != "cannotMake") {
		c.findings = c.findings[:n]
		c.add(base, "stuck", false, withText(x.text()))
	}
	return false
}

func judgeDaemonSet(c *check, o *checkedObject, base finding, young bool) bool {
	s := parse[appsv1.DaemonSetStatus](o.Status)
	if s.NumberReady < s.DesiredNumberScheduled && !young {
		c.add(base, "unavailable", s.NumberReady > 0, withCounts(s.NumberReady, s.DesiredNumberScheduled))
	}
	return false
}

// cronRun is the newest finished job of a CronJob.
type cronRun struct {
	created, job string
	failed       bool
	reason       string
	base         finding
}

func judgeJob(c *check, o *checkedObject, base finding, young bool) bool {
	s, all := parse[batchv1.JobStatus](o.Status), conditionsOf(o.Status)
	failed := find(all, string(batchv1.JobFailed))
	if failed != nil && failed.Status != "True" {
		failed = nil
	}
	done := find(all, string(batchv1.JobComplete))
	if of := controlledBy(o.Metadata.OwnerReferences, "CronJob"); of != "" && (failed != nil || done != nil) {
		key := o.Metadata.Namespace + "/" + of
		if r := (cronRun{created: o.Metadata.CreationTimestamp, job: o.Metadata.Name, base: base}); r.created >= c.runs[key].created {
			if failed != nil {
				r.failed, r.reason = true, failed.text()
			}
			r.base.Path, r.base.Name = strings.TrimSuffix(base.Path, "/jobs")+"/cronjobs", of
			c.runs[key] = r
		}
		return false
	}
	spec := parse[batchv1.JobSpec](o.Spec)
	switch {
	case failed != nil:
		c.add(base, "jobFailed", false, withText(failed.text()))
	case done != nil || spec.Suspend != nil && *spec.Suspend || s.Active > 0 || young:
	case s.Failed > 0: // the next attempt comes by itself
		c.add(base, "jobRetries", true, withCounts(s.Failed, 0))
	case s.Succeeded == 0:
		c.add(base, "jobIdle", false)
	}
	return false
}

func judgeAutoscaler(c *check, o *checkedObject, base finding, young bool) bool {
	for _, kind := range []autoscalingv2.HorizontalPodAutoscalerConditionType{autoscalingv2.AbleToScale, autoscalingv2.ScalingActive} {
		x := find(conditionsOf(o.Status), string(kind))
		if x != nil && x.Status == "False" && x.Reason != "ScalingDisabled" && !young {
			c.add(base, "scaling", false, aboutName(x.Type), withText(x.text()))
			return false
		}
	}
	return false
}

func judgeBudget(c *check, o *checkedObject, base finding, young bool) bool {
	s, spec := parse[policyv1.PodDisruptionBudgetStatus](o.Status), parse[policyv1.PodDisruptionBudgetSpec](o.Spec)
	x := find(conditionsOf(o.Status), policyv1.DisruptionAllowedCondition)
	labels := map[string]string(nil)
	if spec.Selector != nil && len(spec.Selector.MatchExpressions) == 0 {
		labels = spec.Selector.MatchLabels
	}
	switch {
	case young:
	case x != nil && x.Status == "False" && x.Reason == policyv1.SyncFailedReason:
		c.add(base, "condition", false, aboutName(x.Type), withText(x.text()))
	case s.ExpectedPods == 0:
		c.add(base, "budgetEmpty", true)
	case s.CurrentHealthy < s.DesiredHealthy:
		c.add(base, "budget", true, withCounts(s.CurrentHealthy, s.DesiredHealthy), withLabels(labels))
	}
	return false
}

func judgeAPIService(c *check, o *checkedObject, base finding, young bool) bool {
	if x := find(conditionsOf(o.Status), "Available"); x != nil && x.Status == "False" && !young {
		c.add(base, "condition", false, aboutName(x.Type), withText(x.text()))
	}
	return false
}
