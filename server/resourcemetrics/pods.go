// SPDX-License-Identifier: Apache-2.0

package resourcemetrics

import (
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
)

// nodeAnnotation is an annotation with a pod's node, written by runningPods and read by GetPodMetrics.
const nodeAnnotation = "coracle.dev/node"

// runningPods lists the running pods in the form that metrics-server's API needs. They come from an informer that the
// API server has in any case.
type runningPods struct{ pods corelisters.PodLister }

var _ cache.GenericLister = runningPods{}

// List implements cache.GenericLister.
func (r runningPods) List(s labels.Selector) ([]runtime.Object, error) {
	return onlyRunning(r.pods.List(s))
}

// Get implements cache.GenericLister. metrics-server requests pods by namespace.
func (r runningPods) Get(name string) (runtime.Object, error) {
	return r.ByNamespace(metav1.NamespaceAll).Get(name)
}

// ByNamespace implements cache.GenericLister.
func (r runningPods) ByNamespace(namespace string) cache.GenericNamespaceLister {
	return runningPodsOf{r.pods.Pods(namespace)}
}

type runningPodsOf struct {
	pods corelisters.PodNamespaceLister
}

// List implements cache.GenericNamespaceLister.
func (r runningPodsOf) List(s labels.Selector) ([]runtime.Object, error) {
	return onlyRunning(r.pods.List(s))
}

// Get implements cache.GenericNamespaceLister.
func (r runningPodsOf) Get(name string) (runtime.Object, error) {
	p, err := r.pods.Get(name)
	if err != nil {
		return nil, err
	}
	if p.Status.Phase != corev1.PodRunning {
		return nil, apierrors.NewNotFound(corev1.Resource("pods"), name)
	}
	return podMetadata(p), nil
}

func onlyRunning(pods []*corev1.Pod, err error) ([]runtime.Object, error) {
	if err != nil {
		return nil, err
	}
	out := make([]runtime.Object, 0, len(pods))
	for _, p := range pods {
		if p.Status.Phase == corev1.PodRunning {
			out = append(out, podMetadata(p))
		}
	}
	return out, nil
}

func podMetadata(p *corev1.Pod) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Namespace: p.Namespace, Name: p.Name, Labels: p.Labels, Annotations: map[string]string{nodeAnnotation: p.Spec.NodeName},
	}}
}
