// SPDX-License-Identifier: Apache-2.0

package lostnodes_test

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"

	"github.com/coracle-k8s/coracle/controllers/lostnodes"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const toleration = time.Minute

var (
	own      = corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: lostnodes.TaintValue, Effect: corev1.TaintEffectNoSchedule}
	foreign  = corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: "nodeshutdown", Effect: corev1.TaintEffectNoExecute}
	replaced = corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: "nodeshutdown", Effect: corev1.TaintEffectNoSchedule}
)

// stopped is a node that stopped its pods in its present boot, and that upstream has just tainted as lost.
func stopped() *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n", Annotations: map[string]string{clusterconfig.StoppedAnnotation: "boot-1"}},
		Spec: corev1.NodeSpec{Taints: []corev1.Taint{
			{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoSchedule},
			{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute, TimeAdded: &metav1.Time{Time: time.Now()}},
		}},
		Status: corev1.NodeStatus{
			NodeInfo:   corev1.NodeSystemInfo{BootID: "boot-1"},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}},
		},
	}
}

func ready(n *corev1.Node, status corev1.ConditionStatus) { n.Status.Conditions[0].Status = status }

// outOfService is what taints a node has out of service.
func outOfService(n *corev1.Node) (found []string) {
	for _, t := range n.Spec.Taints {
		if t.Key == corev1.TaintNodeOutOfService {
			found = append(found, t.Value+":"+string(t.Effect))
		}
	}
	return found
}

// run runs a Controller over one Node until the test ends. It returns the client and the recorder's events.
func run(t *testing.T, n *corev1.Node, reactors ...func(*fake.Clientset)) (*fake.Clientset, chan string) {
	t.Helper()
	client := fake.NewClientset(n)
	for _, r := range reactors {
		r(client)
	}
	recorder := record.NewFakeRecorder(10)
	all := informers.NewSharedInformerFactory(client, 0)
	c := testenv.Must(lostnodes.New(lostnodes.Options{
		Client: client, Nodes: all.Core().V1().Nodes(), Toleration: toleration, Recorder: recorder,
		AutonomyEnded: func(*corev1.Node) {}, Logger: slog.New(slog.DiscardHandler),
	}))(t)
	all.StartWithContext(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); c.Run(t.Context()) }()
	t.Cleanup(func() { <-ended; all.Shutdown() })
	return client, recorder.Events
}

// TestStoppedNodesAreTainted: a lost node that stopped its pods in its present boot is out of service when the pods'
// toleration is over, and for no longer than that is so. Everything else leaves it as it is.
func TestStoppedNodesAreTainted(t *testing.T) {
	const ownText, foreignText, replacedText = "coracle-stopped:NoSchedule", "nodeshutdown:NoExecute", "nodeshutdown:NoSchedule"
	for what, row := range map[string]struct {
		change func(*corev1.Node)
		before string // before the toleration is over
		after  string // a while after it is
		late   string // after 25 hours
	}{
		"lost, and stopped in this boot": {func(*corev1.Node) {}, "", ownText, ownText},
		"stopped in an earlier boot":     {func(n *corev1.Node) { n.Status.NodeInfo.BootID = "boot-2" }, "", "", ""},
		"never stopped":                  {func(n *corev1.Node) { n.Annotations = nil }, "", "", ""},
		"never stopped, of an unknown boot": {func(n *corev1.Node) {
			n.Annotations, n.Status.NodeInfo.BootID = map[string]string{clusterconfig.StoppedAnnotation: ""}, ""
		}, "", "", ""},
		"alive":                  {func(n *corev1.Node) { ready(n, corev1.ConditionTrue) }, "", "", ""},
		"lost, not yet tainted":  {func(n *corev1.Node) { n.Spec.Taints = n.Spec.Taints[:1] }, "", "", ""},
		"tainted by an operator": {func(n *corev1.Node) { n.Spec.Taints[1].TimeAdded = nil }, "", "", ""},
		"not ready, by its own word": {func(n *corev1.Node) {
			ready(n, corev1.ConditionFalse)
			n.Spec.Taints[1].Key = corev1.TaintNodeNotReady
		}, "", "", ""},
		"with an autonomy":              {func(n *corev1.Node) { n.Annotations[clusterconfig.AutonomyAnnotation] = "24h" }, "", "", ownText},
		"with an autonomy that is none": {func(n *corev1.Node) { n.Annotations[clusterconfig.AutonomyAnnotation] = "1d" }, "", ownText, ownText},

		"tainted before": {func(n *corev1.Node) {
			n.Spec.Taints[1].TimeAdded.Time = time.Now().Add(-toleration)
			n.Spec.Taints = append(n.Spec.Taints, own)
		}, ownText, ownText, ownText},
		"back, in another boot":       {func(n *corev1.Node) { n.Spec.Taints = append(n.Spec.Taints, own); n.Status.NodeInfo.BootID = "boot-2" }, "", "", ""},
		"back, without an annotation": {func(n *corev1.Node) { n.Spec.Taints = append(n.Spec.Taints, own); n.Annotations = nil }, "", "", ""},
		"back, and ready":             {func(n *corev1.Node) { n.Spec.Taints = append(n.Spec.Taints, own); ready(n, corev1.ConditionTrue) }, "", "", ""},
		"an autonomy was given since": {func(n *corev1.Node) {
			n.Spec.Taints = append(n.Spec.Taints, own)
			n.Annotations[clusterconfig.AutonomyAnnotation] = "24h"
		}, "", "", ownText},

		"out of service by an operator's taint": {func(n *corev1.Node) { n.Spec.Taints = append(n.Spec.Taints, foreign) },
			foreignText, foreignText, foreignText},
		"the same, with this effect": {func(n *corev1.Node) { n.Spec.Taints = append(n.Spec.Taints, replaced) },
			replacedText, replacedText, replacedText},
		"back, with an operator's taint": {func(n *corev1.Node) {
			n.Spec.Taints = append(n.Spec.Taints, own, foreign)
			n.Status.NodeInfo.BootID = "boot-2"
		}, foreignText, foreignText, foreignText},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := stopped()
				row.change(n)
				client, _ := run(t, n)
				check := func(when, want string) {
					t.Helper()
					got := testenv.Must(client.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{}))(t)
					testenv.Equal(t, strings.Join(outOfService(got), " "), want, "out of service %s:", when)
					others := slices.DeleteFunc(got.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
					testenv.Equal(t, len(others), len(slices.DeleteFunc(slices.Clone(n.Spec.Taints),
						func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })), "other taints:")
				}
				time.Sleep(toleration - time.Second) // of the bubble's clock
				check("within the toleration", row.before)
				time.Sleep(2 * time.Second) // of the bubble's clock
				check("after the toleration", row.after)
				time.Sleep(25 * time.Hour) // of the bubble's clock
				check("a day later", row.late)
			})
		})
	}
}

// TestTaintFollowsTheNode: the annotation is compared on the Node as it is when the taint is written, a failed write is
// repeated, and the taint goes as the node is back.
func TestTaintFollowsTheNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failures := 3
		client, _ := run(t, stopped(), func(c *fake.Clientset) {
			c.PrependReactor("update", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
				failures--
				return failures >= 0, nil, errors.New("no quorum")
			})
		})
		nodes := client.CoreV1().Nodes()
		time.Sleep(toleration + 10*time.Second) // of the bubble's clock
		got := testenv.Must(nodes.Get(t.Context(), "n", metav1.GetOptions{}))(t)
		testenv.Equal(t, len(outOfService(got)), 1, "taints after failures:")
		got.Status.NodeInfo.BootID = "boot-2"
		testenv.Must(nodes.UpdateStatus(t.Context(), got, metav1.UpdateOptions{}))(t)
		time.Sleep(time.Second) // of the bubble's clock
		got = testenv.Must(nodes.Get(t.Context(), "n", metav1.GetOptions{}))(t)
		testenv.Equal(t, len(outOfService(got)), 0, "taints in another boot:")
	})
	synctest.Test(t, func(t *testing.T) {
		client, _ := run(t, stopped(), func(c *fake.Clientset) {
			c.PrependReactor("get", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
				back := stopped() // which the informer has not received yet
				back.Annotations = nil
				return true, back, nil
			})
		})
		time.Sleep(2 * toleration) // of the bubble's clock
		for _, a := range client.Actions() {
			testenv.False(t, a.Matches("update", "nodes"), "a Node was tainted that has no annotation any more")
		}
	})
}

// TestMalformedAutonomyIsReported: once for each value, by an event that says what the value has to be.
func TestMalformedAutonomyIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := stopped()
		n.Annotations[clusterconfig.AutonomyAnnotation] = "2 days"
		client, events := run(t, n)
		time.Sleep(time.Second) // of the bubble's clock: it is reported
		update := func(change func(*corev1.Node)) {
			t.Helper()
			got := testenv.Must(client.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{}))(t)
			change(got)
			testenv.Must(client.CoreV1().Nodes().Update(t.Context(), got, metav1.UpdateOptions{}))(t)
			time.Sleep(time.Second) // of the bubble's clock
		}
		update(func(n *corev1.Node) { ready(n, corev1.ConditionTrue) })
		update(func(n *corev1.Node) { n.Annotations[clusterconfig.AutonomyAnnotation] = "forever" })
		update(func(n *corev1.Node) { n.Annotations[clusterconfig.AutonomyAnnotation] = "48h" })
		close(events)
		var got []string
		for e := range events {
			got = append(got, e)
		}
		if len(got) != 2 || !strings.Contains(got[0], `is "2 days"`) || !strings.Contains(got[1], `is "forever"`) || !strings.Contains(got[0], "such as 24h") {
			t.Errorf("events: %q", got)
		}
	})
}
