// SPDX-License-Identifier: Apache-2.0

package console

import (
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/coracle-k8s/coracle/internal/convert"
)

// lenientValue is a value of type T. It stays empty when the JSON has another form, because the API of an extension may
// answer with any object.
type lenientValue[T any] struct{ v T }

// UnmarshalJSON implements json.Unmarshaler.
func (l *lenientValue[T]) UnmarshalJSON(text []byte) error {
	var v T
	if json.Unmarshal(text, &v) == nil {
		l.v = v
	}
	return nil
}

// rowObject is the object of a table's row. It has a spec and a status if the request has includeObject=Object.
type rowObject struct {
	Kind     string                       `json:"kind"`
	Metadata metadata                     `json:"metadata"`
	Spec     lenientValue[podRequests]    `json:"spec"`
	Status   lenientValue[capacityStatus] `json:"status"`
}

// podRequests has the fields of a pod's spec with its requests and limits.
type podRequests struct {
	InitContainers []reservingContainer         `json:"initContainers"`
	Containers     []reservingContainer         `json:"containers"`
	Overhead       corev1.ResourceList          `json:"overhead"`
	Resources      *corev1.ResourceRequirements `json:"resources"`
}

type reservingContainer struct {
	Name          string                         `json:"name"`
	Resources     corev1.ResourceRequirements    `json:"resources"`
	RestartPolicy *corev1.ContainerRestartPolicy `json:"restartPolicy"`
}

// capacityStatus has fields of a status: the phase of a pod, and the resources that a node has for pods.
type capacityStatus struct {
	Phase       corev1.PodPhase     `json:"phase"`
	Capacity    corev1.ResourceList `json:"capacity"`
	Allocatable corev1.ResourceList `json:"allocatable"`
}

// requestsAndLimits returns what a pod requests and may use, or what a node has for pods:
//
//	of a pod: CPU and memory that it requests, and the sums of the limits; nothing if it has ended
//	of a node: CPU, memory, and the number of pods
//
// 0 is none. The sums are those of `kubectl describe node`. limits has the limits of each container and, under "", of
// the pod. It is empty when the sum of the limits is the limit of the only container.
func (o *rowObject) requestsAndLimits() (use []int64, limits map[string][2]int64) {
	switch o.Kind {
	case "Node":
		has := o.Status.v.Allocatable
		if len(has) == 0 {
			has = o.Status.v.Capacity
		}
		if len(has) == 0 {
			return nil, nil
		}
		pair := pairOf(has)
		return []int64{pair[0], pair[1], has.Pods().Value()}, nil
	case "Pod":
		if phase := o.Status.v.Phase; phase == corev1.PodSucceeded || phase == corev1.PodFailed || len(o.Spec.v.Containers) == 0 {
			return nil, nil
		}
		p := o.Spec.v.pod()
		requests := pairOf(resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{}))
		sum := pairOf(resourcehelper.PodLimits(p, resourcehelper.PodResourcesOptions{}))
		return []int64{requests[0], requests[1], sum[0], sum[1]}, limitsOf(p, sum)
	}
	return nil, nil
}

func (r *podRequests) pod() *corev1.Pod {
	of := func(containers []reservingContainer) []corev1.Container {
		return convert.Slice(containers, func(c reservingContainer) corev1.Container {
			return corev1.Container{Name: c.Name, Resources: c.Resources, RestartPolicy: c.RestartPolicy}
		})
	}
	return &corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: of(r.InitContainers), Containers: of(r.Containers), Overhead: r.Overhead, Resources: r.Resources,
	}}
}

// limitsOf returns the limits that hold while a pod runs, if they are not simply the sum.
func limitsOf(p *corev1.Pod, sum [2]int64) map[string][2]int64 {
	running := p.Spec.Containers
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways { // a sidecar
			running = append(running, c)
		}
	}
	if len(running) == 1 && p.Spec.Resources == nil && pairOf(running[0].Resources.Limits) == sum {
		return nil
	}
	out := map[string][2]int64{}
	for i := range running {
		out[running[i].Name] = pairOf(running[i].Resources.Limits)
	}
	if r := p.Spec.Resources; r != nil {
		out[""] = pairOf(r.Limits)
	}
	return out
}

// pairOf returns CPU in thousandths of a core, and memory in bytes.
func pairOf(list corev1.ResourceList) [2]int64 {
	return [2]int64{list.Cpu().MilliValue(), list.Memory().Value()}
}
