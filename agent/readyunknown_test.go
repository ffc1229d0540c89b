// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func nodeThatIs(name string, ready corev1.ConditionStatus) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
		{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionUnknown}, {Type: corev1.NodeReady, Status: ready},
	}}}
}

// TestKubeletReportsWhileReadyIsUnknown: the kubelet reports at once when the API says that nothing is known of the
// node, again until it says something else, and not without end.
func TestKubeletReportsWhileReadyIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		v, report := newReadyUnknown(), make(chan struct{})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			v.requestReports(ctx, report)
		}()
		reports := func(until time.Duration) (n int) {
			for end := time.After(until); ; n++ {
				select {
				case <-report:
				case <-end:
					return n
				}
			}
		}
		v.observe(nodeThatIs("n1", corev1.ConditionTrue))
		v.observe(nodeThatIs("n1", corev1.ConditionFalse))
		testenv.Equal(t, reports(time.Hour), 0, "reports of a node of which something is known:")
		v.observe(nodeThatIs("n1", corev1.ConditionUnknown))
		<-report // at once: nothing else wakes in fake time
		testenv.Equal(t, reports(2*reportPause+reportPause/2), 2, "more reports in two and a half pauses:")
		v.observe(nodeThatIs("n1", corev1.ConditionTrue))
		testenv.Equal(t, reports(time.Hour), 0, "reports after it was taken back:")
		v.observe(nodeThatIs("n1", corev1.ConditionUnknown))
		testenv.Equal(t, reports(time.Hour), reportTries, "reports that change nothing:")
		cancel()
		<-ended
	})
}

// TestReadyUnknownFollowsItsNode: what the own Node says is noted, and its end.
func TestReadyUnknownFollowsItsNode(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	client := fake.NewClientset(nodeThatIs("other", corev1.ConditionUnknown), nodeThatIs("own", corev1.ConditionTrue))
	factory := informers.NewSharedInformerFactory(client, 0)
	defer factory.Shutdown()
	defer cancel()
	v := newReadyUnknown()
	testenv.NoError(t, v.follow(factory.Core().V1().Nodes(), "own", func(bool) {}))
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	testenv.Must(client.CoreV1().Nodes().UpdateStatus(ctx, nodeThatIs("own", corev1.ConditionUnknown), metav1.UpdateOptions{}))(t)
	<-v.mayChange
	testenv.True(t, v.unknown.Load(), "nothing is known of this node, and that is not noted")
	testenv.NoError(t, client.CoreV1().Nodes().Delete(ctx, "own", metav1.DeleteOptions{}))
	for v.unknown.Load() {
		time.Sleep(time.Millisecond) // until the event has come
	}
}

// TestClusterLosesTheNode: a node that was deleted, or is younger than the snapshot that was restored, is not well by
// its own status. What is missing from a new list goes as well as what is seen going.
func TestClusterLosesTheNode(t *testing.T) {
	o := Options{Node: config.Node{Name: "own"}, Board: status.NewBoard(time.Now)}
	o.statusPart("node").Set(status.Running, "")
	h := newReadyUnknown().handler("own", o.nodeIsThere())
	is := func(what string, want status.State) {
		t.Helper()
		if c := o.Board.Components()[0]; c.State != want || want == status.Degraded && !strings.Contains(c.Message, "Restart coracle here") {
			t.Errorf("%s: %+v", what, c)
		}
	}
	own, other := nodeThatIs("own", corev1.ConditionTrue), nodeThatIs("other", corev1.ConditionTrue)
	h.OnAdd(own, true)
	h.OnAdd(other, true)
	h.OnDelete(other)
	h.OnDelete(cache.DeletedFinalStateUnknown{Key: "other", Obj: other})
	is("another node goes", status.Running)
	h.OnDelete(own)
	is("it is deleted", status.Degraded)
	h.OnAdd(own, false)
	is("it is there again", status.Running)
	h.OnDelete(cache.DeletedFinalStateUnknown{Key: "own", Obj: own})
	is("it is missing from a new list", status.Degraded)
}
