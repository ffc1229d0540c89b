// SPDX-License-Identifier: Apache-2.0

package lostnodes

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	coreinformers "k8s.io/client-go/informers/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// evictableAt returns from when on a lost node's pods may be evicted, by the key of each taint with which upstream says
// that it is lost: from the time of the taint, or from the end of the node's autonomy. A taint without a time is an
// operator's.
func evictableAt(n *corev1.Node) map[string]time.Time {
	at := map[string]time.Time{}
	for _, t := range n.Spec.Taints {
		if t.Effect == corev1.TaintEffectNoExecute && t.TimeAdded != nil &&
			(t.Key == corev1.TaintNodeUnreachable || t.Key == corev1.TaintNodeNotReady) {
			autonomy, _ := clusterconfig.ParseAutonomy(n.Annotations[clusterconfig.AutonomyAnnotation]) // 0 with an error
			at[t.Key] = t.TimeAdded.Add(autonomy)
		}
	}
	return at
}

// Nodes returns the Nodes as upstream's controller of evictions (tainteviction) is to see them: without the taints of a
// lost node whose autonomy is not over. At its end the controller has to be called: Options.AutonomyEnded.
func Nodes(all coreinformers.NodeInformer) coreinformers.NodeInformer { return nodes{all} }

type nodes struct{ coreinformers.NodeInformer }

// Informer implements coreinformers.NodeInformer.
func (n nodes) Informer() cache.SharedIndexInformer { return informer{n.NodeInformer.Informer()} }

// Lister implements coreinformers.NodeInformer.
func (n nodes) Lister() corelisters.NodeLister { return lister{n.NodeInformer.Lister()} }

type informer struct{ cache.SharedIndexInformer }

// AddEventHandler implements cache.SharedInformer.
func (i informer) AddEventHandler(h cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return i.SharedIndexInformer.AddEventHandler(handler{h})
}

type handler struct{ cache.ResourceEventHandler }

// OnAdd implements cache.ResourceEventHandler.
func (h handler) OnAdd(obj any, initial bool) {
	h.ResourceEventHandler.OnAdd(withoutFutureTaints(obj.(*corev1.Node)), initial)
}

// OnUpdate implements cache.ResourceEventHandler.
func (h handler) OnUpdate(before, after any) {
	h.ResourceEventHandler.OnUpdate(withoutFutureTaints(before.(*corev1.Node)), withoutFutureTaints(after.(*corev1.Node)))
}

type lister struct{ corelisters.NodeLister }

// Get implements corelisters.NodeLister.
func (l lister) Get(name string) (*corev1.Node, error) {
	n, err := l.NodeLister.Get(name)
	if err != nil {
		return nil, err
	}
	return withoutFutureTaints(n), nil
}

// withoutFutureTaints returns a Node without the taints for which no pod may be evicted yet.
func withoutFutureTaints(n *corev1.Node) *corev1.Node {
	if n.Annotations[clusterconfig.AutonomyAnnotation] == "" {
		return n
	}
	at, now := evictableAt(n), time.Now()
	shown := *n
	shown.Spec.Taints = slices.DeleteFunc(slices.Clone(n.Spec.Taints), func(t corev1.Taint) bool {
		return t.Effect == corev1.TaintEffectNoExecute && at[t.Key].After(now)
	})
	return &shown
}
