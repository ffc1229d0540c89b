// SPDX-License-Identifier: Apache-2.0

package departures

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// leaving is a cluster with one node that is to leave and the leader's loop.
type leaving struct {
	*departures
	client  *fake.Clientset
	evicted []string
	refuse  error // what evictions are answered with, if anything
	passed  time.Duration
}

func newLeaving(t *testing.T, grace string, ready corev1.ConditionStatus, pods ...*corev1.Pod) *leaving {
	t.Helper()
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u1", Annotations: map[string]string{clusterconfig.LeaveAnnotation: grace}},
		Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}},
	}
	objects := []runtime.Object{n, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2", UID: "u2"}}}
	for _, p := range pods {
		p.Spec.NodeName = "n1"
		objects = append(objects, p)
	}
	l := &leaving{client: fake.NewClientset(objects...)}
	l.client.PrependReactor("create", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		e, ok := a.(clienttesting.CreateAction).GetObject().(*policyv1.Eviction)
		if !ok || a.GetSubresource() != "eviction" {
			return false, nil, nil
		}
		if l.refuse != nil {
			return true, nil, l.refuse
		}
		l.evicted = append(l.evicted, e.Name)
		return true, e, l.client.Tracker().Delete(corev1.SchemeGroupVersion.WithResource("pods"), e.Namespace, e.Name)
	})
	lister := informers.NewSharedInformerFactory(l.client, 0).Core().V1().Nodes()
	testenv.NoError(t, lister.Informer().GetStore().Add(n))
	start := time.Now()
	l.departures = &departures{client: l.client, nodes: lister.Lister(), orderSeen: map[types.UID]time.Time{},
		log: slog.New(slog.DiscardHandler),
		now: func() time.Time { return start.Add(l.passed) }}
	return l
}

// silentSince says since when the node's Ready is what it is.
func (l *leaving) silentSince(t *testing.T, passed time.Duration) {
	t.Helper()
	n := l.node(t)
	n.Status.Conditions[0].LastTransitionTime = metav1.NewTime(l.now().Add(passed - l.passed))
	l.successor(t, n)
}

// successor is another leader, which sees this of the node.
func (l *leaving) successor(t *testing.T, n *corev1.Node) {
	t.Helper()
	informer := informers.NewSharedInformerFactory(l.client, 0).Core().V1().Nodes()
	testenv.NoError(t, informer.Informer().GetStore().Add(n))
	l.departures.nodes, l.departures.orderSeen = informer.Lister(), map[types.UID]time.Time{}
}

// node is what the API has of the node that leaves, nil when it is gone.
func (l *leaving) node(t *testing.T) *corev1.Node {
	t.Helper()
	n, err := l.client.CoreV1().Nodes().Get(context.Background(), "n1", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	testenv.NoError(t, err)
	testenv.NoError(t, testenv.Err(l.client.CoreV1().Nodes().Get(context.Background(), "n2", metav1.GetOptions{})), "the other node")
	return n
}

func plainPod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "d"}}
}

func TestPodsAreEvictedBeforeTheirNodeIsDeleted(t *testing.T) {
	ofDaemonSet := plainPod("daemon")
	ofDaemonSet.OwnerReferences = []metav1.OwnerReference{{Kind: "DaemonSet", Controller: new(true)}}
	mirror := plainPod("mirror")
	mirror.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
	over := plainPod("over")
	over.Status.Phase = corev1.PodSucceeded
	l := newLeaving(t, "1m0s", corev1.ConditionTrue, plainPod("a"), plainPod("b"), ofDaemonSet, mirror, over)
	testenv.True(t, l.takeNextSteps(t.Context()), "the node left before its pods")
	if n := l.node(t); n == nil || !n.Spec.Unschedulable {
		t.Errorf("new pods are not kept away: %+v", n)
	}
	slices.Sort(l.evicted)
	testenv.Equal(t, strings.Join(l.evicted, " "), "a b", "evicted")
	testenv.False(t, l.takeNextSteps(t.Context()) || l.node(t) != nil, "the pods are gone, and the node is still there")
}

func TestNodeIsDeletedWhenItsTimeIsUp(t *testing.T) {
	l := newLeaving(t, "1m0s", corev1.ConditionTrue, plainPod("kept"))
	l.refuse = apierrors.NewTooManyRequestsError("its disruption budget does not allow it")
	for l.passed = 0; l.passed < time.Minute; l.passed += 10 * time.Second {
		testenv.Require(t, l.takeNextSteps(t.Context()) && l.node(t) != nil, "the node is gone after %s", l.passed)
	}
	testenv.False(t, l.takeNextSteps(t.Context()) || l.node(t) != nil, "the node is there after %s", l.passed)
}

func TestDeadNodesPodsAreNotWaitedFor(t *testing.T) {
	for _, ready := range []corev1.ConditionStatus{corev1.ConditionUnknown, corev1.ConditionFalse} {
		l := newLeaving(t, "1h0m0s", ready, plainPod("a"))
		l.refuse = apierrors.NewTooManyRequestsError("not now")
		l.silentSince(t, 0)
		testenv.True(t, l.takeNextSteps(t.Context()) && l.node(t) != nil,
			"Ready is %s: the node of a machine that is silent for a moment was deleted", ready)
		l.passed = departedAfter
		testenv.False(t, l.takeNextSteps(t.Context()) || l.node(t) != nil, "Ready is %s: the node is there after %s", ready, l.passed)
	}
	// A node that never said whether it is Ready counts from the order.
	l := newLeaving(t, "1h0m0s", "", plainPod("a"))
	l.refuse = apierrors.NewTooManyRequestsError("not now")
	for l.passed = 0; l.passed < departedAfter; l.passed += 20 * time.Second {
		testenv.Require(t, l.takeNextSteps(t.Context()) && l.node(t) != nil, "without a word, the node was deleted after %s", l.passed)
	}
	testenv.False(t, l.takeNextSteps(t.Context()) || l.node(t) != nil, "without a word, the node is there")
}

// TestNewLeaderGoesOn: a node's time to leave goes on under the next leader; and an order that was taken back and given
// again has its whole time.
func TestNewLeaderGoesOn(t *testing.T) {
	l := newLeaving(t, "10m0s", corev1.ConditionTrue, plainPod("kept"))
	l.refuse = apierrors.NewTooManyRequestsError("not now")
	testenv.Require(t, l.takeNextSteps(t.Context()), "it left at once")
	l.successor(t, l.node(t))
	l.passed = 10 * time.Minute
	testenv.False(t, l.takeNextSteps(t.Context()) || l.node(t) != nil, "the node is there when its time is up under another leader")

	l = newLeaving(t, "10m0s", corev1.ConditionTrue, plainPod("kept"))
	l.refuse = apierrors.NewTooManyRequestsError("not now")
	l.takeNextSteps(t.Context())
	n := l.node(t)
	delete(n.Annotations, clusterconfig.LeaveAnnotation)
	l.successor(t, n)
	l.takeNextSteps(t.Context())
	if n = l.node(t); n == nil || n.Annotations[departureSince] != "" {
		t.Fatalf("what was noted of an order that was taken back is still there: %+v", n)
	}
}

func TestOrderToLeaveIsTakenBack(t *testing.T) {
	l := newLeaving(t, "1m0s", corev1.ConditionTrue, plainPod("kept"))
	l.refuse = apierrors.NewTooManyRequestsError("not now")
	l.takeNextSteps(t.Context())
	n := l.node(t)
	delete(n.Annotations, clusterconfig.LeaveAnnotation)
	set := func() {
		informer := informers.NewSharedInformerFactory(l.client, 0).Core().V1().Nodes()
		testenv.NoError(t, informer.Informer().GetStore().Add(n))
		l.departures.nodes = informer.Lister()
	}
	set()
	l.passed = 2 * time.Minute
	testenv.False(t, l.takeNextSteps(t.Context()) || l.node(t) == nil, "the node was deleted although the order was taken back")
	delete(n.Annotations, departureSince)
	// Given again, it has its whole time again.
	n.Annotations[clusterconfig.LeaveAnnotation] = "1m0s"
	set()
	testenv.False(t, !l.takeNextSteps(t.Context()) || l.node(t) == nil, "the second order had the time of the first")
}

func TestWrongOrdersRemoveNothing(t *testing.T) {
	for _, grace := range []string{"", "soon", "-1s", "60", "25h"} {
		l := newLeaving(t, grace, corev1.ConditionTrue, plainPod("a"))
		testenv.True(t, l.takeNextSteps(t.Context()) && l.node(t) != nil && !l.node(t).Spec.Unschedulable && len(l.evicted) == 0,
			"%q did something", grace)
	}
}

func TestFailedEvictionsKeepTheNode(t *testing.T) {
	l := newLeaving(t, "1m0s", corev1.ConditionTrue, plainPod("a"))
	l.refuse = apierrors.NewInternalError(errors.New("the webhook does not answer"))
	testenv.False(t, !l.takeNextSteps(t.Context()) || l.node(t) == nil, "the node was deleted although its pods could not be evicted")
}
