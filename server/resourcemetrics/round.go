// SPDX-License-Identifier: Apache-2.0

package resourcemetrics

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/metrics-server/pkg/storage"
)

const (
	// roundTimeout bounds a round, so that the next one begins in time.
	roundTimeout = 12 * time.Second
	// parallel is how many kubelets are asked at a time.
	parallel = 32
)

var errNoTime = errors.New("its turn did not come in time: too many other kubelets are slow")

// round asks the kubelets of all nodes, those of nodes that are not ready last. Figures of a kubelet that does not answer are gone with the
// ones before: old ones would hold for true what is not known.
func (k *kubelets) round(ctx context.Context, nodes []*corev1.Node, pods []*corev1.Pod, before *figures) *figures {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	after := &figures{nodes: map[string]figure{}, pods: map[types.NamespacedName]podFigures{}, failed: map[string]error{}, asked: len(nodes)}
	at := make(map[types.NamespacedName]string, len(pods))
	for _, p := range pods {
		at[types.NamespacedName{Namespace: p.Namespace, Name: p.Name}] = p.Spec.NodeName
	}
	var (
		mu      sync.Mutex
		asking  sync.WaitGroup
		slots   = make(chan struct{}, parallel)
		answers = func(n *corev1.Node, a answer, err error) {
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				after.failed[n.Name] = err
				if ready(n) {
					after.lost = append(after.lost, n.Name)
				}
				return
			}
			a.into(after)
		}
	)
	for _, n := range readyFirst(nodes) {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			answers(n, answer{}, errNoTime)
			continue
		}
		asking.Go(func() {
			defer func() { <-slots }()
			a, err := k.ask(ctx, n, at, before)
			answers(n, a, err)
		})
	}
	asking.Wait()
	slices.Sort(after.lost)
	return after
}

// answer is what one kubelet said.
type answer struct {
	name string
	node *figure // nil if it does not know
	pods map[types.NamespacedName]podFigures
}

func (a answer) into(f *figures) {
	if a.node != nil {
		f.nodes[a.name] = *a.node
	}
	for ref, p := range a.pods {
		f.pods[ref] = p
	}
}

// ask asks one kubelet. at says where each pod is.
func (k *kubelets) ask(ctx context.Context, n *corev1.Node, at map[types.NamespacedName]string, before *figures) (answer, error) {
	b, err := k.read(ctx, n)
	if err != nil {
		return answer{}, err
	}
	for ref := range b.Pods {
		if at[ref] != n.Name {
			delete(b.Pods, ref) // it has gone, or is another node's
		}
	}
	var own *rates
	if !before.have(n.Name, b) {
		own, _ = k.rates(ctx, n) // without them it takes another round
	}
	a := answer{name: n.Name, pods: make(map[types.NamespacedName]podFigures, len(b.Pods))}
	if p, ok := b.Nodes[n.Name]; ok {
		f := before.node(n.Name, p, own)
		a.node = &f
	}
	for ref, pod := range b.Pods {
		of := podFigures{node: n.Name, containers: make(map[string]figure, len(pod.Containers))}
		for name, p := range pod.Containers {
			of.containers[name] = before.container(ref, name, p, own)
		}
		a.pods[ref] = of
	}
	return a, nil
}

// have says whether there is a figure before each point of a kubelet's answer.
func (f *figures) have(node string, b *storage.MetricsBatch) bool {
	if f == nil {
		return false
	}
	for _, p := range b.Nodes {
		if old, ok := f.nodes[node]; !ok || !old.continues(p) {
			return false
		}
	}
	for ref, pod := range b.Pods {
		for name, p := range pod.Containers {
			if old, ok := f.pods[ref].containers[name]; !ok || !old.continues(p) {
				return false
			}
		}
	}
	return true
}

func (f *figures) node(name string, p storage.MetricsPoint, own *rates) figure {
	if f != nil {
		if old, ok := f.nodes[name]; ok && old.continues(p) {
			return old.next(p)
		}
	}
	rate, known := own.ofNode()
	return first(p, rate, known)
}

func (f *figures) container(ref types.NamespacedName, name string, p storage.MetricsPoint, own *rates) figure {
	if f != nil {
		if old, ok := f.pods[ref].containers[name]; ok && old.continues(p) {
			return old.next(p)
		}
	}
	rate, known := own.of(ref, name)
	return first(p, rate, known)
}

// readyFirst is a copy of nodes with those that are ready before the others.
func readyFirst(nodes []*corev1.Node) []*corev1.Node {
	out := slices.Clone(nodes)
	slices.SortStableFunc(out, func(a, b *corev1.Node) int {
		switch x, y := ready(a), ready(b); {
		case x == y:
			return 0
		case x:
			return -1
		default:
			return 1
		}
	})
	return out
}

func ready(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
