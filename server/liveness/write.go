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
	// atOnce is the time within which nodes vanish together.
	atOnce = time.Minute
	// hold is for how long the Nodes are left alone when most vanished together and upstream would evict pods
	// nevertheless: upstream's own wait before it does.
	hold = 5 * time.Minute
	// decided is how long after a death, at the latest, it is known who vanished together with the node: by then those
	// were checked, too, that have the longest time to be silent.
	decided = quickFar + CheckTimeout + lateBy
	// unhealthyPercent is from how many lost nodes of a zone on, of more than two, upstream evicts nothing or little:
	// its
	// --unhealthy-zone-threshold.
	unhealthyPercent = 55

	// notCounted is upstream's label for nodes that come and go as they please.
	notCounted = "node.kubernetes.io/exclude-disruption"

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
	podsAtOnce := max(1, parallel/max(1, len(todo)))
	each(parallel, todo, func(n *corev1.Node) {
		s := j.nodes[n.Name]
		began := j.o.Now()
		defer func() { j.noteDelay(j.o.Now().Sub(began) - writeTimeout) }()
		ctx, cancel := context.WithTimeout(ctx, writeTimeout)
		defer cancel()
		// The Node first: where its pods are not ready, the controllers look at the Node.
		if !s.nodeDone && !j.o.Now().Before(s.holdNodeTo) && (!j.undecided || j.o.Now().Sub(s.dead) >= decided) {
			err := j.markNode(ctx, n.Name)
			if s.nodeDone = err == nil; err != nil && ctx.Err() == nil {
				j.o.Logger.Warn("that a node is dead could not be written; it is tried again", "node", n.Name, "error", err)
			}
		}
		if !s.podsDone {
			err := j.markPods(ctx, n.Name, podsAtOnce)
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

// holdBack leaves Nodes alone when most have vanished together: then it is likelier that this server is cut off. Their
// pods are marked, which a node that lives undoes, but no pod is evicted. As long as that is not known of enough of
// them, all that were found dead last are left alone. In some zones upstream stops evictions by itself, see
// upstreamStops; this is for the others.
func (j *Judge) holdBack(nodes []*corev1.Node) {
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
			s.holdNodeTo = s.dead.Add(hold)
			j.o.Logger.Warn("most nodes vanished at the same time; it may be this server that is cut off. Services do not use the node's "+
				"pods any more, and "+
				"they are not moved yet", "node", n.Name, "until", s.holdNodeTo)
		}
	}
}

// mayHaveVanished counts the nodes of which it is not known yet whether they vanished together with one that was found
// dead a moment ago: they have said nothing since the judge began to doubt that one, and no check has counted yet, or
// their machines answer, and in a moment that saves them no longer. Each node speaks at moments of its own, so some are
// missed up to a second before others.
func (j *Judge) mayHaveVanished(nodes []*corev1.Node) (count int) {
	var doubted time.Time
	now := j.o.Now()
	for _, n := range nodes {
		if s := j.nodes[n.Name]; s != nil && !s.dead.IsZero() && !s.nodeDone && s.holdNodeTo.IsZero() && now.Sub(s.dead) < decided {
			doubted = latest(doubted, s.doubted)
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
		if !s.checked || s.late || s.answers && j.waited(n.Name, s, now) > slow-decided {
			count++
		}
	}
	return count
}

// vanished is when a node was lost; zero: it was not. One that an earlier judge has found dead is lost since then:
// those are none of the nodes that vanish together, nor of those among which they do.
func (j *Judge) vanished(n *corev1.Node) time.Time {
	s := j.nodes[n.Name]
	if s == nil || s.dead.IsZero() {
		return time.Time{}
	}
	if r := readyOf(n); r != nil && r.Status == corev1.ConditionUnknown && r.LastTransitionTime.Time.Before(s.dead) {
		return r.LastTransitionTime.Time
	}
	return s.dead
}

// upstreamStops says of which Nodes upstream's node lifecycle controller moves no pods, or in zones of more than fifty
// nodes few, once these are lost. It looks at each zone by itself: a zone of which more than two nodes are lost, most
// of them and not all. Of a zone that is lost as a whole it moves the pods as ever, since they may run in another one,
// unless no zone is left. A node that is not ready is lost to it, though it is heard, and one with the label notCounted
// is neither.
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
		if z == nil { // it has no node that counts
			return !left
		}
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

// markPods makes a node's pods not ready, so many side by side: a disk takes many writes in the time of one, and a slow
// one would take seconds for a hundred, one after the other.
func (j *Judge) markPods(ctx context.Context, node string, atOnce int) error {
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
	failed := make(chan error, len(shares)) // each has one
	each(atOnce, shares, func(share []*corev1.Pod) {
		failed <- nodeutil.MarkPodsNotReady(ctx, j.o.Client, j.o.Recorder, share, node)
	})
	close(failed)
	for e := range failed {
		err = errors.Join(err, e)
	}
	return err
}
