// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestEvictionsStopWhileMostNodesAreUnknown: upstream's controllers move no pods while most nodes are Unknown, and do
// once enough others are ready. Judges of nodes rely on it (server/liveness).
func TestEvictionsStopWhileMostNodesAreUnknown(t *testing.T) {
	c := shared
	c.term(t)
	c.heartbeats(t)
	ns := c.namespace(t, "zones")
	var nodes []string
	add := func() string {
		name := fmt.Sprintf("zones-%d", len(nodes))
		c.node(t, name)
		nodes = append(nodes, name)
		return name
	}
	for range 4 {
		pod := podTemplate("stays")
		pod.Spec.NodeName = add()
		pod.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To[int64](0)}}
		testenv.Must(c.client.CoreV1().Pods(ns).Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "on-" + pod.Spec.NodeName, Labels: pod.Labels}, Spec: pod.Spec}, metav1.CreateOptions{}))(t)
	}
	eventually(t, "upstream knows the nodes", func(context.Context) error { return unhealthyNodes(0, 4) })
	lost := nodes[:3]
	for _, name := range lost {
		c.unknown(t, name)
	}
	eventually(t, "upstream has seen that three of four are lost", func(context.Context) error { return unhealthyNodes(3, 4) })
	// Otherwise it would taint one of them every ten seconds, of which nothing tells that it does not happen. Some may
	// be tainted already: upstream may have looked while fewer were Unknown. And one more may be at the moment at which
	// it stops.
	already := c.tainted(t, lost)
	time.Sleep(25 * time.Second)
	before := c.tainted(t, lost)
	testenv.True(t, len(before) <= len(already)+1, "while three of four nodes are lost, %v are tainted, and were %v", before, already)
	for range 3 {
		add()
	}
	eventually(t, "pods are moved once most nodes are ready", func(context.Context) error {
		if gone := c.gone(t, ns, lost); len(gone) <= len(before) {
			return fmt.Errorf("only those of %v are", gone)
		}
		return nil
	})
}

// heartbeats reports every few seconds, until the test ends, that the nodes that are ready still are: there are no
// kubelets, and upstream takes a node for lost after 50 s, which is less than this test takes on a busy machine.
func (c *cluster) heartbeats(t *testing.T) {
	var reporting sync.WaitGroup
	t.Cleanup(reporting.Wait) // t.Context has ended then
	nodes := c.client.CoreV1().Nodes()
	reporting.Go(func() {
		for t.Context().Err() == nil {
			if list, err := nodes.List(t.Context(), metav1.ListOptions{}); err == nil { // else in the next round
				for _, n := range list.Items {
					i := slices.IndexFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady })
					if i < 0 || n.Status.Conditions[i].Status != corev1.ConditionTrue {
						continue
					}
					n.Status.Conditions[i].LastHeartbeatTime = metav1.Now()
					_, _ = nodes.UpdateStatus(t.Context(), &n, metav1.UpdateOptions{})
				}
			}
			select {
			case <-t.Context().Done():
			case <-time.After(5 * time.Second):
			}
		}
	})
}

// unknown writes that nothing is known of a node, as a judge does.
func (c *cluster) unknown(t *testing.T, name string) {
	t.Helper()
	testenv.NoError(t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		n, err := c.client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		i := slices.IndexFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady })
		ready := &n.Status.Conditions[i]
		ready.Status, ready.Reason, ready.LastTransitionTime = corev1.ConditionUnknown, "NodeStatusUnknown", metav1.Now()
		_, err = c.client.CoreV1().Nodes().UpdateStatus(t.Context(), n, metav1.UpdateOptions{})
		return err
	}))
}

// tainted are the nodes whose pods are to be moved.
func (c *cluster) tainted(t *testing.T, nodes []string) (out []string) {
	t.Helper()
	for _, name := range nodes {
		n := testenv.Must(c.client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{}))(t)
		if slices.ContainsFunc(n.Spec.Taints, func(taint corev1.Taint) bool {
			return taint.Key == corev1.TaintNodeUnreachable && taint.Effect == corev1.TaintEffectNoExecute
		}) {
			out = append(out, name)
		}
	}
	return out
}

// gone are the nodes whose pods have been deleted.
func (c *cluster) gone(t *testing.T, ns string, nodes []string) (out []string) {
	t.Helper()
	for _, name := range nodes {
		pod, err := c.client.CoreV1().Pods(ns).Get(t.Context(), "on-"+name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && pod.DeletionTimestamp != nil {
			out = append(out, name)
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// unhealthyNodes fails unless upstream's node lifecycle controller has last counted so many nodes, and so many of them
// as lost.
func unhealthyNodes(lost, all float64) error {
	families, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		return err
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			got[f.GetName()] += m.GetGauge().GetValue() // of all zones
		}
	}
	const subsystem = "node_collector_"
	if l, a := got[subsystem+"unhealthy_nodes_in_zone"], got[subsystem+"zone_size"]; l != lost || a != all {
		return fmt.Errorf("it has counted %v nodes, %v of them lost, want %v and %v", a, l, all, lost)
	}
	return nil
}
