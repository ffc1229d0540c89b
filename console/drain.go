// SPDX-License-Identifier: Apache-2.0

package console

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// drainRound is the interval of polls for deleted pods.
	drainRound = time.Second
	// drainRetry is the time after which a refused eviction of a pod is tried again, as in kubectl.
	drainRetry = 5 * time.Second
)

type drainOptions struct {
	ignoreDaemonSets, deleteEmptyDirData, force bool
	gracePeriod                                 *int64        // seconds; nil for each pod's own
	timeout                                     time.Duration // 0 for none
}

func newDrainOptions(query url.Values) (o drainOptions, err error) {
	o.ignoreDaemonSets, o.deleteEmptyDirData = query.Get("ignoreDaemonSets") == "true", query.Get("deleteEmptyDirData") == "true"
	o.force = query.Get("force") == "true"
	if text := query.Get("gracePeriod"); text != "" {
		seconds, err := strconv.ParseUint(text, 10, 31)
		if err != nil {
			return o, errors.New("the grace period is a number of seconds")
		}
		o.gracePeriod = new(int64)
		*o.gracePeriod = int64(seconds) //nolint:gosec // 31 bits
	}
	if text := query.Get("timeout"); text != "" {
		if o.timeout, err = time.ParseDuration(text); err != nil || o.timeout < 0 {
			return o, errors.New("the timeout is a duration, as 5m")
		}
	}
	return o, nil
}

// drain removes all pods from a node: it cordons the node, evicts the pods and waits until they are deleted. It does
// the same as kubectl drain, with one difference: when a pod may not be evicted, the node stays unchanged.
//
// k8s.io/kubectl/pkg/drain is not used: it adds 111 packages, and sleeps without a context.
type drain struct {
	u       *user
	path    string // of the node
	node    string
	o       drainOptions
	report  func(pod, state, text string) error // reports the state of a pod; pod "" is for the node
	waiting map[types.UID]*podEviction
}

type podEviction struct {
	pod     corev1.Pod
	evicted bool
	retryAt time.Time // when its eviction is tried again
	refusal string    // the last reported reason of a refusal
}

// drainNode drains a node and reports the state of each pod in the stream. The drain ends with the stream.
func (st *stream) drainNode(ctx context.Context, r *pageMessage) error {
	if st.s.h.o.ReadOnly {
		return apierrors.NewForbidden(schema.GroupResource{Resource: "nodes"}, "", errors.New(readOnly))
	}
	name, found := strings.CutPrefix(r.Path, "/api/v1/nodes/")
	if err := objectPath(r.Path); err != nil || !found {
		return apierrors.NewBadRequest("only nodes are drained")
	}
	o, err := newDrainOptions(r.values())
	if err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	d := &drain{u: st.s.u, path: r.Path, node: name, o: o, report: func(pod, state, text string) error {
		return st.send(message{"type": "drain", "pod": pod, "state": state, "message": text})
	}}
	return d.run(ctx)
}

// run drains the node. When it may not drain the node, the node stays unchanged.
func (d *drain) run(ctx context.Context) error {
	if d.o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, d.o.timeout,
			fmt.Errorf("not all pods have gone after %s: the node stays cordoned", d.o.timeout))
		defer cancel()
	}
	err := d.drain(ctx)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return apierrors.NewTimeoutError(context.Cause(ctx).Error(), 0)
	}
	return err
}

func (d *drain) drain(ctx context.Context) error {
	if _, _, err := d.choose(ctx); err != nil {
		return err
	}
	var node corev1.Node
	if err := d.u.get(ctx, d.path, nil, &node); err != nil {
		return err
	}
	if !node.Spec.Unschedulable {
		err := d.u.write(ctx, http.MethodPatch, d.path, url.Values{"fieldManager": {fieldManager}}, string(types.StrategicMergePatchType),
			[]byte(`{"spec":{"unschedulable":true}}`), &node)
		if err != nil {
			return fmt.Errorf("cordoning the node: %w", err)
		}
	}
	if err := d.report("", "cordoned", ""); err != nil {
		return err
	}
	// Pods may have been bound to the node since the first check.
	pods, ignored, err := d.choose(ctx)
	if err != nil {
		return err
	}
	for _, pod := range ignored {
		if err := d.report(pod, "ignored", "a DaemonSet has it"); err != nil {
			return err
		}
	}
	d.waiting = map[types.UID]*podEviction{}
	for _, pod := range pods {
		d.waiting[pod.UID] = &podEviction{pod: pod}
	}
	return d.wait(ctx)
}

// choose returns the pods to evict, and those of DaemonSets, which stay. It fails when a pod may not be evicted.
func (d *drain) choose(ctx context.Context) (pods []corev1.Pod, ignored []string, err error) {
	all, err := d.pods(ctx)
	if err != nil {
		return nil, nil, err
	}
	refused := map[string][]string{}
	for _, pod := range all {
		reason, stays, err := d.obstacle(ctx, &pod)
		switch {
		case err != nil:
			return nil, nil, err
		case stays:
			if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; !mirror {
				ignored = append(ignored, podName(&pod))
			}
		case reason != "":
			refused[reason] = append(refused[reason], podName(&pod))
		default:
			pods = append(pods, pod)
		}
	}
	if len(refused) == 0 {
		return pods, ignored, nil
	}
	var texts []string
	for reason, names := range refused {
		slices.Sort(names)
		texts = append(texts, reason+": "+strings.Join(names, ", "))
	}
	slices.Sort(texts)
	return nil, nil, apierrors.NewBadRequest("Nothing was changed. " + strings.Join(texts, ". "))
}

// obstacle returns the reason for which a pod may not be evicted with these options, or reports that it stays. The
// rules are those of kubectl (k8s.io/kubectl/pkg/drain/filters.go).
func (d *drain) obstacle(ctx context.Context, pod *corev1.Pod) (reason string, stays bool, err error) {
	ended := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	controller := metav1.GetControllerOf(pod)
	if controller != nil && controller.Kind == "DaemonSet" && controller.APIVersion == "apps/v1" && !ended {
		var set metav1.PartialObjectMetadata
		err := d.u.get(ctx, "/apis/apps/v1/namespaces/"+url.PathEscape(pod.Namespace)+"/daemonsets/"+url.PathEscape(controller.Name), nil,
			&set)
		switch {
		case apierrors.IsNotFound(err) && d.o.force: // no controller creates it again
		case apierrors.IsNotFound(err):
			return "Pods of a DaemonSet that is gone (--force evicts them)", false, nil
		case err != nil:
			return "", false, err
		case d.o.ignoreDaemonSets:
			return "", true, nil
		default:
			return "Pods of DaemonSets (--ignore-daemonsets leaves them)", false, nil
		}
	}
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return "", true, nil
	}
	if ended {
		return "", false, nil
	}
	local := slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.EmptyDir != nil })
	if local && !d.o.deleteEmptyDirData {
		return "Pods with data in an emptyDir volume, which is lost (--delete-emptydir-data accepts that)", false, nil
	}
	if controller == nil && !d.o.force {
		return "Pods without a controller (--force evicts them)", false, nil
	}
	return "", false, nil
}

func (d *drain) pods(ctx context.Context) ([]corev1.Pod, error) {
	var out []corev1.Pod
	query := url.Values{"fieldSelector": {"spec.nodeName=" + d.node}, "limit": {"500"}}
	for {
		var list corev1.PodList
		if err := d.u.get(ctx, "/api/v1/pods", query, &list); err != nil {
			return nil, err
		}
		out = append(out, list.Items...)
		if list.Continue == "" {
			return out, nil
		}
		query.Set("continue", list.Continue)
	}
}

func podName(pod *corev1.Pod) string { return pod.Namespace + "/" + pod.Name }

// wait evicts the pods until all are deleted. It tries refused evictions again.
func (d *drain) wait(ctx context.Context) error {
	for {
		for _, w := range d.inOrder() {
			if err := d.evict(ctx, w); err != nil {
				return err
			}
		}
		if len(d.waiting) == 0 {
			return nil
		}
		if !timers.Sleep(ctx, drainRound) {
			return ctx.Err() //nolint:wrapcheck // the caller adds the context
		}
		now, err := d.pods(ctx)
		if err != nil && !isTemporary(err) {
			return err
		}
		if err != nil {
			continue // the API is unavailable at the moment
		}
		for _, w := range d.inOrder() {
			if at := slices.IndexFunc(now, func(pod corev1.Pod) bool { return pod.UID == w.pod.UID }); at >= 0 {
				w.pod = now[at]
				continue
			}
			delete(d.waiting, w.pod.UID)
			if err := d.report(podName(&w.pod), "gone", ""); err != nil {
				return err
			}
		}
	}
}

func (d *drain) inOrder() []*podEviction {
	return slices.SortedFunc(maps.Values(d.waiting), func(a, b *podEviction) int { return cmp.Compare(podName(&a.pod), podName(&b.pod)) })
}

// evict requests a pod's eviction, unless it has to wait. An eviction that a PodDisruptionBudget refuses is tried again
// later.
func (d *drain) evict(ctx context.Context, w *podEviction) error {
	if w.evicted || time.Now().Before(w.retryAt) {
		return nil
	}
	body, err := json.Marshal(&policyv1.Eviction{
		TypeMeta:   metav1.TypeMeta{APIVersion: "policy/v1", Kind: "Eviction"},
		ObjectMeta: metav1.ObjectMeta{Namespace: w.pod.Namespace, Name: w.pod.Name},
		// Only the pod that the user saw, and no other with the same name.
		DeleteOptions: &metav1.DeleteOptions{GracePeriodSeconds: d.o.gracePeriod, Preconditions: &metav1.Preconditions{UID: &w.pod.UID}},
	})
	if err != nil {
		return fmt.Errorf("writing an eviction: %w", err)
	}
	var answer metav1.Status
	err = d.u.write(ctx, http.MethodPost, podPath(&w.pod)+"/eviction", nil, "application/json", body, &answer)
	terminating := apierrors.IsForbidden(err) && apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
	switch {
	case err == nil, apierrors.IsNotFound(err), terminating && w.pod.DeletionTimestamp != nil:
		w.evicted = true // the next list shows whether it is deleted
		return d.report(podName(&w.pod), "evicted", "")
	case apierrors.IsTooManyRequests(err), apierrors.IsConflict(err), terminating, isTemporary(err):
		w.retryAt = time.Now().Add(drainRetry)
		text := refusalOf(err)
		if text == w.refusal {
			return nil
		}
		w.refusal = text
		return d.report(podName(&w.pod), "refused", text)
	}
	return fmt.Errorf("evicting pod %s: %w", podName(&w.pod), err)
}

// refusalOf returns the reason of a refused eviction. The API gives the budget's name and numbers as causes.
func refusalOf(err error) string {
	_, _, text := explainError(err)
	var status apierrors.APIStatus
	if errors.As(err, &status) && status.Status().Details != nil {
		for _, cause := range status.Status().Details.Causes {
			text += " " + cause.Message
		}
	}
	return text
}
