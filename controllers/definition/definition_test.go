// SPDX-License-Identifier: Apache-2.0

package definition

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestDefinitionWaitsForNodeObjectOrTimeout: a node that is ready, a user who has an object, and fifteen seconds end
// the wait, and nothing else.
func TestDefinitionWaitsForNodeObjectOrTimeout(t *testing.T) {
	node := func(ready corev1.ConditionStatus) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a"},
			Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}}}
	}
	for name, c := range map[string]struct {
		begins corev1.ConditionStatus // of the node
		after  time.Duration          // what happens then
		then   func(client *fake.Clientset, wanted timers.Signal, stop func())
		is     time.Duration
		fails  bool
	}{
		"ready":      {begins: corev1.ConditionTrue},
		"none ready": {begins: corev1.ConditionFalse, is: noNode},
		"ready later": {begins: corev1.ConditionFalse, after: 2 * time.Second, is: 2 * time.Second,
			then: func(client *fake.Clientset, _ timers.Signal, _ func()) {
				testenv.Must(client.CoreV1().Nodes().UpdateStatus(t.Context(), node(corev1.ConditionTrue), metav1.UpdateOptions{}))(t)
			}},
		"wanted": {begins: corev1.ConditionFalse, after: 3 * time.Second, is: 3 * time.Second,
			then: func(_ *fake.Clientset, wanted timers.Signal, _ func()) { wanted.Send() }},
		"ended": {begins: corev1.ConditionFalse, after: time.Second, is: time.Second, fails: true,
			then: func(_ *fake.Clientset, _ timers.Signal, stop func()) { stop() }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, wanted := fake.NewClientset(node(c.begins)), timers.NewSignal()
				factory := informers.NewSharedInformerFactory(client, 0)
				nodes := factory.Core().V1().Nodes().Informer()
				ctx, stop := context.WithCancel(t.Context())
				factory.StartWithContext(ctx)
				factory.WaitForCacheSyncWithContext(ctx)
				if c.then != nil {
					time.AfterFunc(c.after, func() { c.then(client, wanted, stop) })
				}
				began := time.Now()
				testenv.Equal(t, AwaitTurn(ctx, nodes, wanted), !c.fails, "the turn has come")
				testenv.Equal(t, time.Since(began), c.is, "it took")
				stop()
				factory.Shutdown()
			})
		})
	}
}
