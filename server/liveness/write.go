// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"context"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	nodeutil "k8s.io/kubernetes/pkg/controller/util/node"
)

const (
	// atOnce is the time within which nodes vanish together.
	atOnce = time.Minute
	// hold is for how long the Nodes are left alone when most vanished together and upstream would evict pods nevertheless: upstream's
	// own wait before it does.
	hold = 5 * time.Minute
	// unhealthyPercent is from how many lost nodes on, of more than two, upstream evicts nothing or little: its
	// --unhealthy-zone-threshold.
	unhealthyPercent = 55

	writeTimeout = 5 * time.Second
)

// conditions are those that a kubelet reports, as upstream's node lifecycle controller has them.
var conditions = []corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure}

// write brings down what is not written yet of the nodes that are dead, and says whether nothing is left.
func (j *Judge) write(ctx context.Context, nodes []*corev1.Node) bool {
	j.holdBack(nodes)
	var todo []*corev1.Node
	for _, n := range nodes {
		if s := j.nodes[n.Name]; s != nil && !s.dead.IsZero() && (!s.podsDone || !s.nodeDone) {
			todo = append(todo, n)
		}
	}
	var left atomic.Bool
	each(todo, func(n *corev1.Node) {
		s := j.nodes[n.Name]
		began := j.o.Now()
		defer func() { j.late(j.o.Now().Sub(began) - writeTimeout) }()
		ctx, cancel := context.WithTimeout(ctx, writeTimeout)
		defer cancel()
		// The Node first: where its pods are not ready, the controllers look at the Node.
		if !s.nodeDone && !j.o.Now().Before(s.holdNodeTo) {
			err := j.markNode(ctx, n.Name)
			if s.nodeDone = err == nil; err != nil && ctx.Err() == nil {
				j.o.Logger.Warn("that a node is dead could not be written; it is tried again", "node", n.Name, "error", err)
			}
		}
		if !s.podsDone {
			err := j.markPods(ctx, n.Name)
			if s.podsDone = err == nil; err != nil && ctx.Err() == nil {
				j.o.Logger.Warn("a dead node's pods could not be marked; it is tried again", "node", n.Name, "error", err)
			}
		}
		if !s.podsDone || !s.nodeDone {
			left.Store(true)
		}
	})
	return !left.Load()
}

// holdBack leaves Nodes alone when most have vanished together: then it is likelier that this server is cut off. Their pods
// are marked, which a node that lives undoes, but nobody is evicted. Upstream stops evictions by itself when all
// nodes are lost, or most of them and more than two; this is for what is between.
func (j *Judge) holdBack(nodes []*corev1.Node) {
	now, lost, together := j.o.Now(), 0, 0
	for _, n := range nodes {
		if s := j.nodes[n.Name]; s != nil && !s.dead.IsZero() {
			lost++
			if now.Sub(s.dead) < atOnce {
				together++
			}
		}
	}
	upstreams := lost == len(nodes) || lost > 2 && lost*100 >= unhealthyPercent*len(nodes)
	if upstreams || together < 2 || together*2 <= len(nodes) {
		return
	}
	for _, n := range nodes {
		if s := j.nodes[n.Name]; s != nil && !s.dead.IsZero() && !s.nodeDone && s.holdNodeTo.IsZero() {
			s.holdNodeTo = s.dead.Add(hold)
			j.o.Logger.Warn("most nodes vanished together; it may be this server that is cut off. Services do not use the node's pods any more, and "+
				"they are not moved yet", "node", n.Name, "until", s.holdNodeTo)
		}
	}
}

// markNode writes that nothing is known of a node. LastHeartbeatTime stays, as upstream leaves it.
func (j *Judge) markNode(ctx context.Context, name string) error {
	for {
		node, err := j.o.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if r := readyOf(node); r != nil && r.Status == corev1.ConditionUnknown {
			return nil
		}
		setUnknown(node, metav1.Now())
		_, err = j.o.Client.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{})
		if apierrors.IsConflict(err) {
			continue
		}
		if err == nil {
			j.o.Recorder.Event(node, corev1.EventTypeNormal, "NodeNotReady", "Node "+name+" is not heard of any more")
		}
		return err
	}
}

func setUnknown(node *corev1.Node, now metav1.Time) {
	for _, kind := range conditions {
		found := false
		for i := range node.Status.Conditions {
			c := &node.Status.Conditions[i]
			if c.Type != kind {
				continue
			}
			found = true
			if c.Status != corev1.ConditionUnknown {
				c.Status, c.Reason, c.LastTransitionTime = corev1.ConditionUnknown, "NodeStatusUnknown", now
				c.Message = "The node's machine is not reached any more."
			}
		}
		if !found {
			node.Status.Conditions = append(node.Status.Conditions, corev1.NodeCondition{
				Type: kind, Status: corev1.ConditionUnknown, Reason: "NodeStatusNeverUpdated", Message: "Kubelet never posted node status.",
				LastHeartbeatTime: node.CreationTimestamp, LastTransitionTime: now,
			})
		}
	}
}

// markPods makes a node's pods not ready.
func (j *Judge) markPods(ctx context.Context, node string) error {
	pods, err := j.o.Client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("spec.nodeName", node).String(),
	})
	if err != nil {
		return err
	}
	all := make([]*corev1.Pod, len(pods.Items))
	for i := range pods.Items {
		all[i] = &pods.Items[i]
	}
	return nodeutil.MarkPodsNotReady(ctx, j.o.Client, j.o.Recorder, all, node)
}
