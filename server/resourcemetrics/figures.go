// SPDX-License-Identifier: Apache-2.0

package resourcemetrics

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/metrics/pkg/apis/metrics"
)

// figures are the results of one round. They are immutable once made.
type figures struct {
	nodes        map[string]figure
	pods         map[types.NamespacedName]podFigures
	failed       map[string]error  // errors of unresponsive kubelets, by node
	impossible   map[string]string // the first impossible value that a kubelet reported, by node
	nodeCount    int               // number of nodes
	unresponsive []string          // names of the failed nodes that are Ready, sorted
	// roundDone is closed when the first round is over. It is set only in the figures that are published before that:
	// unresponsive kubelets may still answer.
	roundDone <-chan struct{}
}

func newFigures(nodes int) *figures {
	return &figures{
		nodes: map[string]figure{}, pods: map[types.NamespacedName]podFigures{}, failed: map[string]error{},
		impossible: map[string]string{}, nodeCount: nodes,
	}
}

// errNotYet is the error of kubelets that may still answer.
var errNotYet = errors.New("it has been asked and has not answered yet")

// partial returns a copy of a round's figures. For nodes that have not answered yet it has the figures of the round
// before.
func (f *figures) partial(before *figures, waiting map[string]bool) *figures {
	out := &figures{nodes: maps.Clone(f.nodes), pods: maps.Clone(f.pods), failed: maps.Clone(f.failed),
		impossible: maps.Clone(f.impossible), nodeCount: f.nodeCount}
	if before == nil {
		for node := range waiting {
			out.failed[node] = errNotYet
		}
		return out
	}
	out.unresponsive = before.unresponsive
	for node := range waiting {
		if of, ok := before.nodes[node]; ok {
			out.nodes[node] = of
		}
		if err := before.failed[node]; err != nil {
			out.failed[node] = err
		}
	}
	for ref, p := range before.pods {
		if _, known := out.pods[ref]; !known && waiting[p.node] {
			out.pods[ref] = p
		}
	}
	return out
}

type podFigures struct {
	node       string
	uid        types.UID
	containers map[string]figure
}

func (f figure) usage() corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU:    newQuantity(f.rate, resource.DecimalSI, resource.Nano),
		corev1.ResourceMemory: newQuantity(f.point.MemoryUsage, resource.BinarySI, 0),
	}
}

// maxValue is the largest value that is accepted from a kubelet whose node's capacity is not known: a million cores, or
// a pebibyte.
const maxValue = 1 << 50

func newQuantity(n uint64, format resource.Format, scale resource.Scale) resource.Quantity {
	q := *resource.NewScaledQuantity(int64(min(n, maxValue)), scale)
	q.Format = format
	return q
}

// GetNodeMetrics implements api.NodeMetricsGetter. It leaves out nodes without figures.
func (c *Collector) GetNodeMetrics(nodes ...*corev1.Node) ([]metrics.NodeMetrics, error) {
	return awaitFigures(c, func(f *figures) ([]metrics.NodeMetrics, map[string]error) { return f.ofNodes(nodes) })
}

// awaitFigures returns what take finds in the newest figures. If that is nothing because of kubelets that may still
// answer, it waits for these.
func awaitFigures[T any](c *Collector, take func(*figures) (found []T, silent map[string]error)) ([]T, error) {
	for {
		f, err := c.latest()
		if err != nil {
			return nil, err
		}
		found, silent := take(f)
		if len(found) > 0 || len(silent) == 0 {
			return found, nil
		}
		if f.roundDone == nil {
			return nil, allUnresponsive(silent)
		}
		select {
		case <-f.roundDone:
		case <-c.done:
			return nil, errStopping
		}
	}
}

// ofNodes returns the metrics of nodes, and the errors of the nodes that have no figures because of their kubelets.
func (f *figures) ofNodes(nodes []*corev1.Node) ([]metrics.NodeMetrics, map[string]error) {
	out := make([]metrics.NodeMetrics, 0, len(nodes))
	silent := map[string]error{}
	for _, n := range nodes {
		have, ok := f.nodes[n.Name]
		if !ok || have.window == 0 {
			if err := f.failed[n.Name]; err != nil {
				silent[n.Name] = err
			}
			continue
		}
		out = append(out, metrics.NodeMetrics{
			ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: n.Labels, CreationTimestamp: metav1.Now()},
			Timestamp:  metav1.NewTime(have.point.Timestamp),
			Window:     metav1.Duration{Duration: have.window},
			Usage:      have.usage(),
		})
	}
	return out, silent
}

// GetPodMetrics implements api.PodMetricsGetter. It leaves out a pod until there are figures of all its containers.
func (c *Collector) GetPodMetrics(pods ...*metav1.PartialObjectMetadata) ([]metrics.PodMetrics, error) {
	return awaitFigures(c, func(f *figures) ([]metrics.PodMetrics, map[string]error) { return f.ofPods(pods) })
}

// ofPods returns the metrics of pods, and the errors of nodes without figures of these pods because of their kubelets.
func (f *figures) ofPods(pods []*metav1.PartialObjectMetadata) ([]metrics.PodMetrics, map[string]error) {
	out := make([]metrics.PodMetrics, 0, len(pods))
	silent := map[string]error{}
	for _, p := range pods {
		have, ok := f.pods[types.NamespacedName{Namespace: p.Namespace, Name: p.Name}]
		if !ok {
			node := p.Annotations[nodeAnnotation]
			if err := f.failed[node]; err != nil {
				silent[node] = err
			}
			continue
		}
		if m, ok := have.metrics(p); ok {
			out = append(out, m)
		}
	}
	return out, silent
}

// metrics returns a pod's metrics with the time of its oldest figure. ok is false when one of its containers has none.
func (p podFigures) metrics(pod *metav1.PartialObjectMetadata) (m metrics.PodMetrics, ok bool) {
	m = metrics.PodMetrics{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, Labels: pod.Labels, CreationTimestamp: metav1.Now()},
		Containers: make([]metrics.ContainerMetrics, 0, len(p.containers)),
	}
	for name, f := range p.containers {
		if f.window == 0 {
			return metrics.PodMetrics{}, false
		}
		if m.Timestamp.IsZero() || f.point.Timestamp.Before(m.Timestamp.Time) {
			m.Timestamp, m.Window = metav1.NewTime(f.point.Timestamp), metav1.Duration{Duration: f.window}
		}
		m.Containers = append(m.Containers, metrics.ContainerMetrics{Name: name, Usage: f.usage()})
	}
	slices.SortFunc(m.Containers, func(a, b metrics.ContainerMetrics) int { return strings.Compare(a.Name, b.Name) })
	return m, len(m.Containers) > 0
}

// allUnresponsive returns the error for a request about only nodes with unresponsive kubelets.
func allUnresponsive(failed map[string]error) error {
	return fmt.Errorf("no figures: %s", describeErrors(failed))
}
