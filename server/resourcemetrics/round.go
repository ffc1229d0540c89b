// SPDX-License-Identifier: Apache-2.0

package resourcemetrics

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	nodeutil "k8s.io/kubernetes/pkg/util/node"
	"sigs.k8s.io/metrics-server/pkg/storage"

	"github.com/coracle-k8s/coracle/internal/truncate"
)

const (
	// roundTimeout limits a round, so that the next one begins in time.
	roundTimeout = 12 * time.Second
	// kubeletWait is how long other nodes' figures wait for slow kubelets.
	kubeletWait = 2 * time.Second
	// maxParallel is how many kubelets are queried concurrently.
	maxParallel = 32
)

var errNoTime = errors.New("it was not asked in time: too many other kubelets are slow")

// readAll requests figures from the kubelets of all nodes. Nodes that are not ready come last. The earlier figures of a
// kubelet that does not answer are dropped: they would no longer be known to be true. After kubeletWait it passes the
// figures so far to early, with the earlier figures of kubelets that have not answered by then.
func (k *kubelets) readAll(ctx context.Context, nodes []*corev1.Node, pods []*corev1.Pod, before *figures, early func(*figures)) *figures {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	after := newFigures(len(nodes))
	at, containers := make(map[types.NamespacedName]*corev1.Pod, len(pods)), map[string]int{}
	for _, p := range pods {
		at[types.NamespacedName{Namespace: p.Namespace, Name: p.Name}] = p
		containers[p.Spec.NodeName] += len(p.Spec.Containers) + len(p.Spec.InitContainers) + len(p.Spec.EphemeralContainers)
	}
	waiting := make(map[string]bool, len(nodes))
	for _, n := range nodes {
		waiting[n.Name] = true
	}
	var (
		mu      sync.Mutex
		asking  sync.WaitGroup
		slots   = make(chan struct{}, maxParallel)
		answers = func(n *corev1.Node, a kubeletReply, err error) {
			mu.Lock()
			defer mu.Unlock()
			delete(waiting, n.Name)
			if err != nil {
				after.failed[n.Name] = shortError(err)
				if nodeutil.IsNodeReady(n) {
					after.unresponsive = append(after.unresponsive, n.Name)
				}
				return
			}
			a.addTo(after)
		}
	)
	shown := make(chan struct{})
	timer := time.AfterFunc(kubeletWait, func() {
		defer close(shown)
		mu.Lock()
		f := after.partial(before, waiting)
		mu.Unlock()
		early(f)
	})
	for _, n := range readyFirst(nodes) {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			answers(n, kubeletReply{}, errNoTime)
			continue
		}
		asking.Go(func() {
			defer func() { <-slots }()
			a, err := k.fetch(context.WithValue(ctx, maxBodyKey{}, minBodyLimit+bytesPerContainer*containers[n.Name]), n, at, before)
			answers(n, a, err)
		})
	}
	asking.Wait()
	if !timer.Stop() {
		<-shown // early figures must be published first
	}
	slices.Sort(after.unresponsive)
	return after
}

// kubeletReply holds the figures in the reply of one kubelet.
type kubeletReply struct {
	name       string
	node       *figure // nil if the kubelet reported none
	pods       map[types.NamespacedName]podFigures
	impossible string // the first impossible value, if any
}

func (a kubeletReply) addTo(f *figures) {
	if a.impossible != "" {
		f.impossible[a.name] = a.impossible
	}
	if a.node != nil {
		f.nodes[a.name] = *a.node
	}
	maps.Copy(f.pods, a.pods)
}

// fetch returns one kubelet's figures. at contains all pods.
func (k *kubelets) fetch(
	ctx context.Context, n *corev1.Node, at map[types.NamespacedName]*corev1.Pod, before *figures,
) (kubeletReply, error) {
	b, err := k.read(ctx, n)
	if err != nil {
		return kubeletReply{}, err
	}
	keepOwnPods(b, n.Name, at)
	s := series{previous: before, now: time.Now(), limits: limitsOf(n)}
	if !s.complete(n.Name, b) {
		s.kubeletRates, _ = k.rates(ctx, n) // without them it takes another round
	}
	a := kubeletReply{name: n.Name, pods: make(map[types.NamespacedName]podFigures, len(b.Pods))}
	if p, ok := b.Nodes[n.Name]; ok {
		f := s.node(n.Name, p)
		a.node = &f
	}
	for ref, pod := range b.Pods {
		of := podFigures{node: n.Name, uid: at[ref].UID, containers: make(map[string]figure, len(pod.Containers))}
		for name, p := range pod.Containers {
			of.containers[name] = s.container(ref, name, p)
		}
		a.pods[ref] = of
	}
	a.impossible = s.impossible
	return a, nil
}

// keepOwnPods removes from a kubelet's reply pods of other nodes, and containers that a pod does not have.
func keepOwnPods(b *storage.MetricsBatch, node string, at map[types.NamespacedName]*corev1.Pod) {
	for ref, said := range b.Pods {
		pod := at[ref]
		if pod == nil || pod.Spec.NodeName != node {
			delete(b.Pods, ref) // deleted, or of another node
			continue
		}
		for name := range said.Containers {
			if !hasContainer(&pod.Spec, name) {
				delete(said.Containers, name)
			}
		}
	}
}

func hasContainer(s *corev1.PodSpec, name string) bool {
	named := func(c corev1.Container) bool { return c.Name == name }
	return slices.ContainsFunc(s.Containers, named) || slices.ContainsFunc(s.InitContainers, named) ||
		slices.ContainsFunc(s.EphemeralContainers, func(c corev1.EphemeralContainer) bool { return c.Name == name })
}

// textLimit limits the length of an error text in bytes: it may contain a kubelet's whole response.
const textLimit = 300

// shortError returns an error with a short and printable text.
func shortError(err error) error {
	return errors.New(truncate.Text(truncate.Printable(err.Error(), ""), textLimit))
}

// readyFirst returns a copy of nodes in which those that are ready come first.
func readyFirst(nodes []*corev1.Node) []*corev1.Node {
	out := slices.Clone(nodes)
	slices.SortStableFunc(out, func(a, b *corev1.Node) int {
		switch x, y := nodeutil.IsNodeReady(a), nodeutil.IsNodeReady(b); {
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
