// SPDX-License-Identifier: Apache-2.0

// Package departures removes nodes that have been ordered to leave the cluster. It runs on the leader.
//
// It owns the annotation in which the leader records when it saw the order. The order itself is the node's or an
// administrator's. It never removes a server from the store: that follows from the deletion of the server's node
// (server/nodemembers).
package departures

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	nodeutil "k8s.io/component-helpers/node/util"

	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// departurePoll is how often the pods of leaving nodes are checked. Without such nodes no requests are sent.
	departurePoll = time.Second
	// departedAfter is how long a leaving node has not been Ready before its pods are not waited for any more: a
	// machine may lose contact for a moment.
	departedAfter = time.Minute
	// departureSince is the annotation in which the leader records when it first saw the order, so that its successor
	// continues from there. The value is a time (RFC 3339) and the order, which may be cancelled and given again.
	departureSince = "coracle.dev/leaving-since"
)

// departures removes nodes that have the annotation [clusterconfig.LeaveAnnotation]. A machine may write it on its own
// node, and an administrator on any. The node is cordoned and its pods are evicted. When the pods have ended, or the
// order's grace is over, the node is deleted.
type departures struct {
	client    kubernetes.Interface
	nodes     listers.NodeLister
	log       *slog.Logger
	now       func() time.Time
	orderSeen map[types.UID]time.Time // when this leader saw the order
}

// Run removes leaving nodes for a term of leadership.
func Run(ctx context.Context, t *term.Term, log *slog.Logger) error {
	nodes := t.Informers.Core().V1().Nodes()
	changed := timers.NewSignal() // sent when a node has to be checked
	look := func(obj any) {
		if n, ok := obj.(*corev1.Node); ok && (isLeaving(n) || departureCancelled(n)) {
			changed.Send()
		}
	}
	_, err := nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: look, UpdateFunc: func(_, obj any) { look(obj) }})
	if err != nil {
		return fmt.Errorf("watching nodes: %w", err)
	}
	client, err := kubernetes.NewForConfig(t.Config)
	if err != nil {
		return fmt.Errorf("making the client for nodes that leave: %w", err)
	}
	d := &departures{client: client, nodes: nodes.Lister(), log: log, now: time.Now, orderSeen: map[types.UID]time.Time{}}
	if !t.StartInformers(ctx) {
		return nil
	}
	changed.Rounds(ctx, 0, func() time.Duration {
		if d.takeNextSteps(ctx) {
			return departurePoll
		}
		return 0 // no node leaves
	})
	return nil
}

// isLeaving says whether a node has the order to leave, and its deletion has not begun.
func isLeaving(n *corev1.Node) bool {
	_, asked := n.Annotations[clusterconfig.LeaveAnnotation]
	return asked && n.DeletionTimestamp == nil
}

// departureCancelled says whether the order to leave was cancelled, but its record is still there.
func departureCancelled(n *corev1.Node) bool {
	_, asked := n.Annotations[clusterconfig.LeaveAnnotation]
	_, noted := n.Annotations[departureSince]
	return noted && !asked && n.DeletionTimestamp == nil
}

// takeNextSteps takes the next step for each leaving node. It returns true if there are leaving nodes left.
func (d *departures) takeNextSteps(ctx context.Context) bool {
	nodes, err := d.nodes.List(labels.Everything())
	unfinished := err != nil
	leaving := map[types.UID]time.Time{}
	for _, n := range nodes {
		if departureCancelled(n) {
			if err := d.cancel(ctx, n); err != nil && ctx.Err() == nil {
				d.log.Warn("the removal of a node was cancelled, but that could not be recorded; retrying", "node", n.Name, "error", err)
				unfinished = true
			}
		}
		if !isLeaving(n) {
			continue
		}
		since, known := d.orderSeen[n.UID]
		if !known {
			since = d.begun(n)
			d.log.Info("removing a node from the cluster", "node", n.Name, "grace", n.Annotations[clusterconfig.LeaveAnnotation])
		}
		leaving[n.UID] = since
		gone, err := d.proceed(ctx, n, since)
		if err != nil && ctx.Err() == nil {
			d.log.Warn("a node could not be removed from the cluster; retrying", "node", n.Name, "error", err)
		}
		unfinished = unfinished || !gone
	}
	d.orderSeen = leaving // drops those that left or had their order cancelled
	return unfinished
}

// proceed takes the next step for one node. It returns true if its deletion has begun.
func (d *departures) proceed(ctx context.Context, n *corev1.Node, since time.Time) (bool, error) {
	grace, err := clusterconfig.ParseLeave(n.Annotations[clusterconfig.LeaveAnnotation])
	if err != nil {
		return false, err
	}
	if begun := departureValue(since, n); !n.Spec.Unschedulable || n.Annotations[departureSince] != begun {
		if err := d.cordon(ctx, n, begun); err != nil {
			return false, err
		}
	}
	// The pods of a dead node are not waited for, since nothing reports their end. Upstream deletes them with their
	// node.
	if now := d.now(); now.Sub(since) < grace && !isDead(n, since, now) {
		left, err := d.evict(ctx, n)
		if err != nil || left > 0 {
			return false, err
		}
	}
	// Only this version of the Node, with the order, is deleted: the order may have been cancelled in the meantime.
	same := &metav1.Preconditions{UID: &n.UID, ResourceVersion: &n.ResourceVersion}
	err = d.client.CoreV1().Nodes().Delete(ctx, n.Name, metav1.DeleteOptions{Preconditions: same})
	if apierrors.IsConflict(err) {
		return false, nil // it is checked again in a second
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("deleting the node: %w", err)
	}
	d.log.Info("deleted a node that left the cluster", "node", n.Name)
	return true, nil
}

// departureValue returns the value of departureSince for an order.
func departureValue(since time.Time, n *corev1.Node) string {
	return since.UTC().Format(time.RFC3339) + " " + n.Annotations[clusterconfig.LeaveAnnotation]
}

// begun returns when an earlier leader saw the node's order, or the present time.
func (d *departures) begun(n *corev1.Node) time.Time {
	now := d.now()
	text, order, _ := strings.Cut(n.Annotations[departureSince], " ")
	if since, err := time.Parse(time.RFC3339, text); err == nil && order == n.Annotations[clusterconfig.LeaveAnnotation] &&
		since.Before(now) {
		return since
	}
	return now
}

// cancel removes the record of a cancelled order.
func (d *departures) cancel(ctx context.Context, n *corev1.Node) error {
	err := d.patch(ctx, n.Name, map[string]any{"metadata": map[string]any{"uid": n.UID,
		"resourceVersion": n.ResourceVersion, "annotations": map[string]any{departureSince: nil}}})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("removing the record of its departure: %w", err)
	}
	return nil
}

// cordon makes the node unschedulable and records when the order was seen.
func (d *departures) cordon(ctx context.Context, n *corev1.Node, begun string) error {
	err := d.patch(ctx, n.Name, map[string]any{"metadata": map[string]any{"uid": n.UID,
		"annotations": map[string]any{departureSince: begun}}, "spec": map[string]any{"unschedulable": true}})
	if err != nil {
		return fmt.Errorf("cordoning the node: %w", err)
	}
	return nil
}

func (d *departures) patch(ctx context.Context, node string, change map[string]any) error {
	patch, err := json.Marshal(change)
	if err == nil {
		_, err = d.client.CoreV1().Nodes().Patch(ctx, node, types.StrategicMergePatchType, patch,
			metav1.PatchOptions{FieldManager: "coracle"})
	}
	return err
}

// evict requests the eviction of the node's pods, and returns how many have not ended. The eviction of a pod whose
// disruption budget does not allow it now is requested again later.
func (d *departures) evict(ctx context.Context, n *corev1.Node) (left int, err error) {
	pods, err := d.client.CoreV1().Pods(metav1.NamespaceAll).List(ctx,
		metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", n.Name).String()})
	if err != nil {
		return 0, fmt.Errorf("listing the pods: %w", err)
	}
	var failed []error
	for i := range pods.Items {
		p := &pods.Items[i]
		if staysWithNode(p) {
			continue
		}
		left++
		if p.DeletionTimestamp != nil {
			continue
		}
		e := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace},
			DeleteOptions: &metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(p.UID))}}
		err := d.client.PolicyV1().Evictions(p.Namespace).Evict(ctx, e)
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsTooManyRequests(err) {
			failed = append(failed, fmt.Errorf("evicting the pod %s/%s: %w", p.Namespace, p.Name, err))
		}
	}
	return left, errors.Join(failed...)
}

// staysWithNode says whether a pod is not evicted. Such a pod has ended, is of a DaemonSet and would be made again on
// the same node (kubectl drain's --ignore-daemonsets), or is the mirror of a static pod.
func staysWithNode(p *corev1.Pod) bool {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return true
	}
	if _, mirror := p.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return true
	}
	owner := metav1.GetControllerOf(p)
	return owner != nil && owner.Kind == "DaemonSet"
}

// isDead says whether a node has not been Ready for departedAfter. For a node without that condition the time counts
// from when its order was seen.
func isDead(n *corev1.Node, since, now time.Time) bool {
	if _, c := nodeutil.GetNodeCondition(&n.Status, corev1.NodeReady); c != nil {
		if c.Status == corev1.ConditionTrue {
			return false
		}
		if at := c.LastTransitionTime.Time; !at.IsZero() && at.Before(now) {
			since = at
		}
	}
	return now.Sub(since) >= departedAfter
}
