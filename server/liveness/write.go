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
	"k8s.io/component-helpers/node/topology"
	nodeutil "k8s.io/kubernetes/pkg/controller/util/node"
)

const (
	// atOnce is the time within which nodes vanish together.
	atOnce = time.Minute
	// hold is for how long the Nodes are left alone when most vanished together and upstream would evict pods nevertheless: upstream's
	// own wait before it does.
	hold = 5 * time.Minute
	// unhealthyPercent is from how many lost nodes of a zone on, of more than two, upstream evicts nothing or little: its
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
// are marked, which a node that lives undoes, but nobody is evicted. In some zones upstream stops evictions by itself, see
// upstreamStops; this is for the others.
func (j *Judge) holdBack(nodes []*corev1.Node) {
	now, together := j.o.Now(), 0
	lost := func(n *corev1.Node) bool {
		s := j.nodes[n.Name]
		return s != nil && !s.dead.IsZero()
	}
	for _, n := range nodes {
		if lost(n) && now.Sub(j.nodes[n.Name].dead) < atOnce {
			together++
		}
	}
	if together < 2 || together*2 <= len(nodes) {
		return
	}
	stops := upstreamStops(nodes, lost)
	for _, n := range nodes {
		if s := j.nodes[n.Name]; lost(n) && !stops(n) && !s.nodeDone && s.holdNodeTo.IsZero() {
			s.holdNodeTo = s.dead.Add(hold)
			j.o.Logger.Warn("most nodes vanished together; it may be this server that is cut off. Services do not use the node's pods any more, and "+
				"they are not moved yet", "node", n.Name, "until", s.holdNodeTo)
		}
	}
}

// upstreamStops says of which Nodes upstream's node lifecycle controller moves no pods, or in zones of more than fifty nodes few, once these are lost. It looks at each
// zone by itself: a zone of which more than two nodes are lost, most of them and not all. Of a zone that is lost as a whole it moves the pods as ever, since they may run in
// another one, unless no zone is left.
func upstreamStops(nodes []*corev1.Node, lost func(*corev1.Node) bool) func(*corev1.Node) bool {
	type zone struct{ nodes, lost int }
	zones, left := map[string]*zone{}, false
	for _, n := range nodes {
		key := topology.GetZoneKey(n)
		z := zones[key]
		if z == nil {
			z = &zone{}
			zones[key] = z
		}
		z.nodes++
		if lost(n) {
			z.lost++
		} else {
			left = true
		}
	}
	return func(n *corev1.Node) bool {
		z := zones[topology.GetZoneKey(n)]
		return !left || z.lost > 2 && z.lost < z.nodes && z.lost*100 >= unhealthyPercent*z.nodes
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
