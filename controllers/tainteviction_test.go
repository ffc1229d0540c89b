// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestAutonomyComesBeforeEvictions: upstream's controller evicts the pods of a lost node when its autonomy and then the
// pods' toleration is over, also if the autonomy changes meanwhile; and a node that stopped its pods is out of service
// no earlier. An operator's taint evicts at once.
func TestAutonomyComesBeforeEvictions(t *testing.T) {
	const minute = time.Minute
	for what, row := range map[string]struct {
		autonomy string
		stopped  bool
		taint    corev1.Taint // beside upstream's
		changed  string       // the autonomy an hour later
		evicted  time.Duration
	}{
		"none":            {evicted: minute},
		"none, stopped":   {stopped: true, evicted: minute},
		"a day":           {autonomy: "24h", changed: "24h", evicted: 24*time.Hour + minute},
		"a day, stopped":  {autonomy: "24h", changed: "24h", stopped: true, evicted: 24*time.Hour + minute},
		"malformed":       {autonomy: "1d", changed: "1d", evicted: minute},
		"longer":          {autonomy: "24h", changed: "48h", evicted: 48*time.Hour + minute},
		"shorter":         {autonomy: "24h", changed: "30m", evicted: time.Hour + minute},
		"taken back":      {autonomy: "24h", changed: "", evicted: time.Hour + minute},
		"another's taint": {autonomy: "24h", taint: corev1.Taint{Key: "broken", Effect: corev1.TaintEffectNoExecute}, evicted: 0},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newEvictions(t, row.autonomy, row.stopped, row.taint)
				since := time.Now()
				until := func(at time.Duration) { time.Sleep(at - time.Since(since)) } // of the bubble's clock
				check := func(want bool) {
					t.Helper()
					_, err := f.client.CoreV1().Pods("default").Get(t.Context(), "some", metav1.GetOptions{})
					testenv.Equal(t, apierrors.IsNotFound(err), want, "evicted after %v:", time.Since(since))
					n := testenv.Must(f.client.CoreV1().Nodes().Get(t.Context(), "lost", metav1.GetOptions{}))(t)
					testenv.Equal(t, strings.Contains(string(testenv.Must(n.Marshal())(t)), "coracle-stopped"), want && row.stopped, "out of service after %v:", time.Since(since))
				}
				if row.evicted > time.Hour {
					until(time.Hour)
					check(false)
					f.set(t, row.changed)
				}
				if row.evicted > 0 {
					until(row.evicted - time.Second)
					check(false)
				}
				until(row.evicted + 2*time.Second)
				check(true)
			})
		})
	}
}

type evictions struct{ client *fake.Clientset }

// newEvictions runs the controller over a node that is lost since now, with a pod that tolerates that for a minute.
func newEvictions(t *testing.T, autonomy string, stopped bool, taint corev1.Taint) evictions {
	t.Helper()
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "lost", Annotations: map[string]string{}},
		Spec: corev1.NodeSpec{Taints: []corev1.Taint{
			{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute, TimeAdded: ptr.To(metav1.Now())}, taint,
		}},
		Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{BootID: "boot"}},
	}
	if taint.Key == "" {
		node.Spec.Taints = node.Spec.Taints[:1]
	}
	if autonomy != "" {
		node.Annotations[clusterconfig.AutonomyAnnotation] = autonomy
	}
	if stopped {
		node.Annotations[clusterconfig.StoppedAnnotation] = "boot"
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "some", Namespace: "default"}, Spec: corev1.PodSpec{NodeName: "lost", Tolerations: []corev1.Toleration{
		{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To[int64](60)},
	}}}
	f := evictions{fake.NewClientset(node, pod)}
	all := informers.NewSharedInformerFactory(f.client, 0)
	testenv.NoError(t, all.Core().V1().Pods().Informer().AddIndexers(cache.Indexers{"spec.nodeName": func(obj any) ([]string, error) {
		return []string{obj.(*corev1.Pod).Spec.NodeName}, nil // upstream's node lifecycle controller adds it
	}}))
	c := testenv.Must(newTaintEvictionController(t.Context(), app.ControllerContext{ClientBuilder: oneClient{Interface: f.client}, InformerFactory: all}, time.Minute))(t)
	all.StartWithContext(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); c.Run(t.Context()) }()
	t.Cleanup(func() { <-ended; all.Shutdown() })
	return f
}

// set sets the node's autonomy, or removes it.
func (f evictions) set(t *testing.T, autonomy string) {
	t.Helper()
	n := testenv.Must(f.client.CoreV1().Nodes().Get(context.Background(), "lost", metav1.GetOptions{}))(t)
	if n.Annotations[clusterconfig.AutonomyAnnotation] = autonomy; autonomy == "" {
		delete(n.Annotations, clusterconfig.AutonomyAnnotation)
	}
	testenv.Must(f.client.CoreV1().Nodes().Update(context.Background(), n, metav1.UpdateOptions{}))(t)
}
