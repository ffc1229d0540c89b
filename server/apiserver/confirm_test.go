// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"maps"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// testConfirmed is about requests that do more than the store can refuse. For these a majority is asked first, so that
// nothing is done even where this server does not know yet that its term is over.
func testConfirmed(t *testing.T, s *running, fence *lateFence, old *loops, ns string) {
	ctx, c := t.Context(), client(t, s.admin())
	pod := testenv.Must(c.CoreV1().Pods(ns).Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "guarded", Labels: map[string]string{"pod": "guarded"}}, Spec: podSpec}, create))(t)
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	testenv.NoError(t, second(c.CoreV1().Pods(ns).UpdateStatus(ctx, pod, update)))
	one := intstr.FromInt32(1)
	budget, err := c.PolicyV1().PodDisruptionBudgets(ns).Create(ctx, &policyv1.PodDisruptionBudget{ObjectMeta: named("budget"), Spec: policyv1.PodDisruptionBudgetSpec{
		MaxUnavailable: &one, Selector: &metav1.LabelSelector{MatchLabels: pod.Labels}}}, create)
	testenv.NoError(t, err)
	budget.Status = policyv1.PodDisruptionBudgetStatus{ObservedGeneration: budget.Generation, DisruptionsAllowed: 1, CurrentHealthy: 1, ExpectedPods: 1}
	testenv.NoError(t, second(c.PolicyV1().PodDisruptionBudgets(ns).UpdateStatus(ctx, budget, update)))

	fence.unaware.Store(true)
	defer fence.unaware.Store(false)
	before := objectsOf(t, s.f.store, ns)
	for name, do := range map[string]func() error{
		"token request": func() error { return termWriteNamed(t, "token request").do(ctx, old, ns) },
		"Service":       func() error { return termWriteNamed(t, "Service").do(ctx, old, ns) },
		"eviction": func() error {
			return old.kube.PolicyV1().Evictions(ns).Evict(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "guarded", Namespace: ns}})
		},
		"request through a proxy": func() error {
			return old.kube.CoreV1().RESTClient().Post().Namespace(ns).Resource("pods").Name("guarded").SubResource("proxy").Do(ctx).Error()
		},
	} {
		testenv.Check(t, isFenced(do()), "%s", name)
		if after := objectsOf(t, s.f.store, ns); !maps.Equal(before, after) { // ranges of addresses and ports, and the budget, among them
			t.Errorf("%s changed something:\n%v\n%v", name, before, after)
			before = after
		}
	}
}

func termWriteNamed(t *testing.T, name string) termWrite {
	t.Helper()
	for _, w := range termWrites {
		if w.name == name {
			return w
		}
	}
	t.Fatalf("there is no kind of write that is called %q", name)
	return termWrite{}
}
