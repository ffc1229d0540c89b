// SPDX-License-Identifier: Apache-2.0

// Package lostnodes decides what happens to the pods of a lost node beside upstream's evictions, for one term of
// leadership. A node that stopped its pods before it was lost is tainted out of service, so that other nodes get its
// StatefulSets' pods and its volumes. A node with an autonomy keeps its pods until that is over.
//
// It owns the taint node.kubernetes.io/out-of-service with the value TaintValue, and decides which taints of lost nodes
// upstream's controller of evictions sees (Nodes). It never decides that a node is lost: upstream's taint
// node.kubernetes.io/unreachable says so. It never changes a taint of an operator's.
package lostnodes

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	nodeutil "k8s.io/kubernetes/pkg/util/node"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// TaintValue is the value of the taint that this package adds and removes.
const TaintValue = clusterconfig.StoppedTaint

const (
	// gatherDelay is how long a round waits for further changes of Nodes.
	gatherDelay = 100 * time.Millisecond
	// retryDelay is the pause after a failed write.
	retryDelay = time.Second
)

// outOfService is read by upstream's collector of pods, which removes the pods of a node that is not ready and that
// they were evicted from, and by its controller of attached volumes. Both compare the key alone (v1.37,
// pkg/controller/podgc, pkg/controller/volume/attachdetach/reconciler). NoExecute, which upstream's documentation has,
// would also evict pods that tolerate a lost node for longer.
var outOfService = corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: TaintValue, Effect: corev1.TaintEffectNoSchedule}

// All fields of Options are required, except Logger.
type Options struct {
	// Client may update Nodes.
	Client kubernetes.Interface
	// Nodes is shared. Another part runs it.
	Nodes coreinformers.NodeInformer
	// Toleration is for how long pods stay on a lost node, unless they have tolerations of their own.
	Toleration time.Duration
	// AutonomyEnded is called when the autonomy of a lost node is over.
	AutonomyEnded func(*corev1.Node)
	Recorder      record.EventRecorder
	Logger        *slog.Logger
}

// Controller taints lost nodes that stopped their pods, and ends autonomies.
type Controller struct {
	o         Options
	changed   timers.Signal
	lastRound time.Time
	// malformed are the values of the annotation of autonomy that were reported, by node.
	malformed map[string]string
}

// New returns a Controller. It must be called before the informers run.
func New(o Options) (*Controller, error) {
	o.Logger = cmp.Or(o.Logger, slog.Default())
	c := &Controller{o: o, changed: timers.NewSignal(), malformed: map[string]string{}}
	_, err := o.Nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { c.changed.Send() },
		UpdateFunc: func(before, after any) {
			if old, now := before.(*corev1.Node), after.(*corev1.Node); nodesDiffer(old, now) {
				c.changed.Send()
			}
		},
	})
	return c, err
}

// nodesDiffer says whether two versions of a Node differ in what the Controller reads.
func nodesDiffer(a, b *corev1.Node) bool {
	return a.Annotations[clusterconfig.StoppedAnnotation] != b.Annotations[clusterconfig.StoppedAnnotation] ||
		a.Annotations[clusterconfig.AutonomyAnnotation] != b.Annotations[clusterconfig.AutonomyAnnotation] ||
		a.Status.NodeInfo.BootID != b.Status.NodeInfo.BootID || nodeutil.IsNodeReady(a) != nodeutil.IsNodeReady(b) ||
		!equality.Semantic.DeepEqual(a.Spec.Taints, b.Spec.Taints)
}

// Run runs rounds until ctx is done: when a Node changes, and when the time of a lost node is over.
func (c *Controller) Run(ctx context.Context) {
	c.changed.Rounds(ctx, gatherDelay, func() time.Duration { return c.examineNodes(ctx) })
}

// examineNodes examines all nodes and returns the pause until the next time that is over, 0 if there is none.
func (c *Controller) examineNodes(ctx context.Context) (again time.Duration) {
	nodes, err := c.o.Nodes.Lister().List(labels.Everything())
	if err != nil { // a cache's lister returns no error
		return retryDelay
	}
	now := time.Now()
	next := func(pause time.Duration) {
		if again == 0 || pause < again {
			again = pause
		}
	}
	for _, n := range nodes {
		c.reportMalformed(n)
		for _, at := range evictableAt(n) {
			if at.After(now) {
				next(at.Sub(now))
			} else if at.After(c.lastRound) {
				c.o.AutonomyEnded(n)
			}
		}
		at, want := c.outOfServiceAt(n)
		if want && at.After(now) {
			next(at.Sub(now))
			want = false
		}
		if want == slices.ContainsFunc(n.Spec.Taints, isOwn) || want && hasForeign(n) {
			continue
		}
		if err := c.sync(ctx, n.Name); err != nil && ctx.Err() == nil {
			c.o.Logger.Warn("the taint of a node that stopped its pods could not be written; retrying", "node", n.Name, "error", err)
			next(retryDelay)
		}
	}
	c.lastRound = now
	return again
}

// reportMalformed reports an autonomy that is none, once for each value.
func (c *Controller) reportMalformed(n *corev1.Node) {
	value := n.Annotations[clusterconfig.AutonomyAnnotation]
	_, err := clusterconfig.ParseAutonomy(value)
	switch {
	case err == nil:
		delete(c.malformed, n.Name)
	case c.malformed[n.Name] != value:
		c.malformed[n.Name] = value
		c.o.Logger.Warn("a node has no autonomy", "node", n.Name, "error", err)
		c.o.Recorder.Event(n, corev1.EventTypeWarning, "MalformedAutonomy", err.Error())
	}
}

// outOfServiceAt returns from when on a node is to be tainted. It returns false for a node that is not lost, and for
// one that has not stopped its pods in its present boot.
func (c *Controller) outOfServiceAt(n *corev1.Node) (time.Time, bool) {
	stopped := n.Annotations[clusterconfig.StoppedAnnotation]
	if stopped == "" || stopped != n.Status.NodeInfo.BootID || nodeutil.IsNodeReady(n) {
		return time.Time{}, false
	}
	at, lost := evictableAt(n)[corev1.TaintNodeUnreachable]
	return at.Add(c.o.Toleration), lost
}

// sync adds or removes the taint of a Node as it is now. The node may have removed its annotation a moment ago: the
// update then fails, as the Node has another version.
func (c *Controller) sync(ctx context.Context, name string) error {
	node, err := c.o.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	at, want := c.outOfServiceAt(node)
	want = want && !at.After(time.Now())
	switch has := slices.ContainsFunc(node.Spec.Taints, isOwn); {
	case want == has:
		return nil
	case want:
		node.Spec.Taints = append(node.Spec.Taints, outOfService)
	default:
		node.Spec.Taints = slices.DeleteFunc(node.Spec.Taints, isOwn)
	}
	if _, err := c.o.Client.CoreV1().Nodes().Update(ctx, node, metav1.UpdateOptions{}); err != nil {
		return err
	}
	if want {
		c.o.Logger.Info("a lost node stopped its pods before; other nodes get its StatefulSets' pods and its volumes", "node", name)
		c.o.Recorder.Event(node, corev1.EventTypeNormal, "OutOfService",
			"The node stopped its pods before it was lost: its StatefulSets' pods and its volumes are free for other nodes")
	} else {
		c.o.Logger.Info("a node is not out of service any more", "node", name)
	}
	return nil
}

// isOwn says whether a taint is this package's.
func isOwn(t corev1.Taint) bool { return t.MatchTaint(&outOfService) && t.Value == TaintValue }

// hasForeign says whether an operator has tainted the node out of service.
func hasForeign(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService && !isOwn(t) })
}
