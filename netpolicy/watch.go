// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"context"
	"maps"
	"reflect"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/internal/netinformers"
)

// watch holds the API's objects. Pods and namespaces are watched once there is a policy: a cluster without policies
// needs only one watch of a few bytes.
type watch struct {
	node        string
	informers   netinformers.PolicyInformers
	policies    cache.SharedIndexInformer
	nodes       corelisters.NodeLister
	synced      []cache.InformerSynced // of the handlers
	firstPolicy chan struct{}          // closed at the first policy
}

// follow calls changed at every event that may change rules.
func follow(i *netinformers.Informers, changed func()) (*watch, error) {
	p, err := i.Policies()
	if err != nil {
		return nil, err
	}
	w := &watch{
		node: i.NodeName(), informers: p, policies: p.NetworkPolicies.Informer(), nodes: i.Nodes().Lister(),
		firstPolicy: make(chan struct{}),
	}
	var first sync.Once
	w.synced, err = netinformers.Follow(func(now any) {
		if _, ok := now.(*networkingv1.NetworkPolicy); ok {
			first.Do(func() { close(w.firstPolicy) })
		}
		changed()
	}, []netinformers.Source{
		{Informer: w.policies, Matters: policiesDiffer}, {Informer: p.Namespaces.Informer(), Matters: namespacesDiffer},
		{Informer: p.Pods.Informer(), Matters: podsDiffer}, {Informer: i.Nodes().Informer(), Matters: nodesDiffer},
	}...)
	return w, err
}

func policiesDiffer(a, b any) bool {
	x, ok := a.(*networkingv1.NetworkPolicy)
	y, ok2 := b.(*networkingv1.NetworkPolicy)
	return !ok || !ok2 || x.UID != y.UID || !reflect.DeepEqual(x.Spec, y.Spec)
}

func namespacesDiffer(a, b any) bool {
	x, ok := a.(*corev1.Namespace)
	y, ok2 := b.(*corev1.Namespace)
	return !ok || !ok2 || !maps.Equal(x.Labels, y.Labels)
}

// podsDiffer reports whether two states of a pod differ in what rules depend on. It is called for every report of a
// kubelet.
func podsDiffer(a, b any) bool {
	x, ok := a.(*corev1.Pod)
	y, ok2 := b.(*corev1.Pod)
	return !ok || !ok2 || x.UID != y.UID || x.Spec.NodeName != y.Spec.NodeName || hasEnded(x) != hasEnded(y) ||
		(x.DeletionTimestamp == nil) != (y.DeletionTimestamp == nil) ||
		!maps.Equal(x.Labels, y.Labels) || x.Status.PodIP != y.Status.PodIP || !slices.Equal(x.Status.PodIPs, y.Status.PodIPs)
}

func nodesDiffer(a, b any) bool {
	x, ok := a.(*corev1.Node)
	y, ok2 := b.(*corev1.Node)
	return !ok || !ok2 || !slices.Equal(x.Spec.PodCIDRs, y.Spec.PodCIDRs)
}

// run starts the watches of pods and namespaces when they are needed, and calls changed when first lists are complete.
func (w *watch) run(ctx context.Context, changed func()) {
	if !cache.WaitForCacheSync(ctx.Done(), w.policies.HasSynced) {
		return
	}
	changed()
	select {
	case <-ctx.Done():
		return
	case <-w.firstPolicy:
	}
	w.informers.WatchPeers()
	if cache.WaitForCacheSync(ctx.Done(), w.synced...) {
		changed()
	}
}

// hasNoPolicies reports whether the cluster is known to have no policy.
func (w *watch) hasNoPolicies() bool {
	return w.policies.HasSynced() && len(w.policies.GetStore().ListKeys()) == 0
}

// complete reports whether the first lists of all inputs are complete: rules of an incomplete view would interrupt
// allowed connections.
func (w *watch) complete() bool {
	return w.hasNoPolicies() || !slices.ContainsFunc(w.synced, func(f cache.InformerSynced) bool { return !f() })
}

func (w *watch) state() (State, error) {
	s := State{Node: w.node}
	var err error
	if s.Policies, err = w.informers.NetworkPolicies.Lister().List(allObjects); err != nil || len(s.Policies) == 0 {
		return s, err
	}
	if s.Pods, err = w.informers.Pods.Lister().List(allObjects); err != nil {
		return s, err
	}
	if s.Namespaces, err = w.informers.Namespaces.Lister().List(allObjects); err != nil {
		return s, err
	}
	s.Nodes, err = w.nodes.List(allObjects)
	return s, err
}
