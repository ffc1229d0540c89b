// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"context"
	"errors"
	"slices"
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
	// atOnce is the time within which nodes count as vanished at the same time.
	atOnce = time.Minute
	// evictionHold is for how long the Nodes are not written when most vanished at the same time and upstream would
	// evict pods nevertheless. It is upstream's own wait before it evicts.
	evictionHold = 5 * time.Minute
	// decisionTime is how long after a death, at the latest, it is known which nodes vanished at the same time: by then
	// those that may be longest without contact were checked, too.
	decisionTime = quickFar + CheckTimeout + lateBy
	// unhealthyPercent is upstream's --unhealthy-zone-threshold: with at least this percentage of lost nodes in a zone,
	// and more than two of them, upstream evicts no pods there or few.
	unhealthyPercent = 55

	// notCounted is upstream's label for nodes that come and go as they please.
	notCounted = "node.kubernetes.io/exclude-disruption"

	writeTimeout = 5 * time.Second
)

// conditions are those that a kubelet reports, as in upstream's node lifecycle controller.
var conditions = []corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure}

// write writes the deaths that are not written yet. It says whether nothing is left.
func (j *NodeMonitor) write(ctx context.Context, nodes []*corev1.Node) bool {
	j.suppressMassFailure(nodes)
	var todo []*corev1.Node
	for _, n := range nodes {
		if s := j.nodes[n.Name]; s != nil && !s.dead.IsZero() && (!s.podsDone || !s.nodeDone) {
			todo = append(todo, n)
		}
	}
	var left atomic.Bool
	podsAtOnce := max(1, maxParallel/max(1, len(todo)))
	forEach(maxParallel, todo, func(n *corev1.Node) {
		s := j.nodes[n.Name]
		began := j.o.Now()
		defer func() { j.handlePause(j.o.Now().Sub(began) - writeTimeout) }()
		ctx, cancel := context.WithTimeout(ctx, writeTimeout)
		defer cancel()
		// The Node first: the controllers read the Node when its pods become not ready.
		if !s.nodeDone && !j.o.Now().Before(s.holdNodeTo) && (!j.undecided || j.o.Now().Sub(s.dead) >= decisionTime) {
			err := j.markNode(ctx, n.Name)
			if s.nodeDone = err == nil; err != nil && ctx.Err() == nil {
				j.o.Logger.Warn("a dead node's status could not be updated; retrying", "node", n.Name, "error", err)
			}
		}
		if !s.podsDone {
			err := j.markPods(ctx, n.Name, podsAtOnce)
			if s.podsDone = err == nil; err != nil && ctx.Err() == nil {
				j.o.Logger.Warn("a dead node's pods could not be marked; retrying", "node", n.Name, "error", err)
			}
		}
		if !s.podsDone || !s.nodeDone {
			left.Store(true)
		}
	})
	return !left.Load()
}

// suppressMassFailure delays the writes to Nodes when most have vanished at the same time: then it is likelier that
// this server is cut off. The pods are marked, which a living node undoes, but no pod is evicted. While it is not yet
// certain that most have vanished, the writes to all Nodes that were found dead last are delayed (undecided). In some
// zones upstream stops evictions by itself (upstreamStops). suppressMassFailure is for the others.
func (j *NodeMonitor) suppressMassFailure(nodes []*corev1.Node) {
	now, living, simultaneous := j.o.Now(), 0, 0
	lost := func(n *corev1.Node) bool { return !j.vanished(n).IsZero() }
	for _, n := range nodes {
		switch at := j.vanished(n); {
		case at.IsZero():
			living++
		case now.Sub(at) < atOnce:
			simultaneous++
		}
	}
	silent := j.mayHaveVanished(nodes)
	j.undecided = silent > 0 && simultaneous+silent > 1 && simultaneous+silent > living-silent
	if simultaneous < 2 || simultaneous <= living {
		return
	}
	stops := upstreamStops(nodes, lost)
	for _, n := range nodes {
		if s := j.nodes[n.Name]; lost(n) && !stops(n) && !s.nodeDone && s.holdNodeTo.IsZero() {
			s.holdNodeTo = s.dead.Add(evictionHold)
			j.o.Logger.Warn("most nodes became unreachable at the same time, so this server may be cut off. Services no longer use the node's "+
				"pods, but "+
				"the pods are not evicted yet", "node", n.Name, "until", s.holdNodeTo)
		}
	}
}

// mayHaveVanished counts the nodes that may have vanished at the same time as one that was found dead a moment ago.
// These have had no contact since the judge began to doubt that one. Either no check of them has counted yet, or their
// machines answer, which soon does not keep them alive any more. Each node sends pings at its own moments, so some are
// missed up to a second before others.
func (j *NodeMonitor) mayHaveVanished(nodes []*corev1.Node) (count int) {
	var doubted time.Time
	now := j.o.Now()
	for _, n := range nodes {
		if s := j.nodes[n.Name]; s != nil && !s.dead.IsZero() && !s.nodeDone && s.holdNodeTo.IsZero() && now.Sub(s.dead) < decisionTime {
			doubted = latestTime(doubted, s.checkBegun)
		}
	}
	if doubted.IsZero() {
		return 0
	}
	for _, n := range nodes {
		s := j.nodes[n.Name]
		if s == nil || !s.dead.IsZero() {
			continue
		}
		if c, ok := j.contact(n.Name, s); !ok || c.Last.After(doubted) {
			continue
		}
		if !s.checked || s.checkWasLate || s.answers && j.waited(n.Name, s, now) > slowDeath-decisionTime {
			count++
		}
	}
	return count
}

// vanished returns when a node was lost, or zero if it was not. A node that an earlier judge has found dead counts as
// lost since then: it is neither one of the nodes that vanish at the same time nor a living one.
func (j *NodeMonitor) vanished(n *corev1.Node) time.Time {
	s := j.nodes[n.Name]
	if s == nil || s.dead.IsZero() {
		return time.Time{}
	}
	if r := readyOf(n); r != nil && r.Status == corev1.ConditionUnknown && r.LastTransitionTime.Time.Before(s.dead) {
		return r.LastTransitionTime.Time
	}
	return s.dead
}

// upstreamStops returns a function that says whether upstream's node lifecycle controller evicts no pods of a Node, or
// few in zones of more than fifty nodes. Upstream decides for each zone: it stops in a zone of which more than two
// nodes are lost, most of them and not all. In a zone that is lost as a whole it evicts as usual, since the pods may
// run in another zone, unless all zones are lost. For upstream a node that is not ready is lost, even if it has contact
// here. Nodes with the label notCounted are not counted at all.
func upstreamStops(nodes []*corev1.Node, lost func(*corev1.Node) bool) func(*corev1.Node) bool {
	type zone struct{ nodes, lost int }
	zones, left := map[string]*zone{}, false
	for _, n := range nodes {
		if _, ok := n.Labels[notCounted]; ok {
			continue
		}
		key := topology.GetZoneKey(n)
		z := zones[key]
		if z == nil {
			z = &zone{}
			zones[key] = z
		}
		z.nodes++
		if r := readyOf(n); lost(n) || r == nil || r.Status != corev1.ConditionTrue {
			z.lost++
		} else {
			left = true
		}
	}
	return func(n *corev1.Node) bool {
		z := zones[topology.GetZoneKey(n)]
		if z == nil { // the zone has no node that counts
			return !left
		}
		return !left || z.lost > 2 && z.lost < z.nodes && z.lost*100 >= unhealthyPercent*z.nodes
	}
}

// markNode writes that the node's conditions are unknown. LastHeartbeatTime stays, as upstream leaves it.
func (j *NodeMonitor) markNode(ctx context.Context, name string) error {
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
		switch _, c := nodeutil.GetNodeCondition(&node.Status, kind); {
		case c == nil:
			node.Status.Conditions = append(node.Status.Conditions, corev1.NodeCondition{
				Type: kind, Status: corev1.ConditionUnknown, Reason: "NodeStatusNeverUpdated", Message: "Kubelet never posted node status.",
				LastHeartbeatTime: node.CreationTimestamp, LastTransitionTime: now,
			})
		case c.Status != corev1.ConditionUnknown:
			c.Status, c.Reason, c.LastTransitionTime = corev1.ConditionUnknown, "NodeStatusUnknown", now
			c.Message = "The node's machine is not reached any more."
		}
	}
}

// markPods makes a node's pods not ready, atOnce of them concurrently. A disk takes many writes in the time of one, and
// a slow disk would take seconds for a hundred, one after the other.
func (j *NodeMonitor) markPods(ctx context.Context, node string, atOnce int) error {
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
	shares := slices.Collect(slices.Chunk(all, max(1, (len(all)+atOnce-1)/atOnce)))
	failed := make(chan error, len(shares)) // one value for each share
	forEach(atOnce, shares, func(share []*corev1.Pod) {
		failed <- nodeutil.MarkPodsNotReady(ctx, j.o.Client, j.o.Recorder, share, node)
	})
	close(failed)
	for e := range failed {
		err = errors.Join(err, e)
	}
	return err
}
