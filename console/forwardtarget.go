// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// forwardTarget is the pod and the port to which a forward leads.
type forwardTarget struct {
	resource, name string // the object that the user chose
	pod            *corev1.Pod
	port           int // of the pod
}

// forwardTarget finds the pod and its port, as kubectl port-forward does.
func (u *user) forwardTarget(ctx context.Context, path, port string) (*forwardTarget, error) {
	if err := objectPath(path); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	info, err := resolver.NewRequestInfo(&http.Request{Method: http.MethodGet, URL: &url.URL{Path: path}})
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	t := &forwardTarget{resource: info.Resource, name: info.Name}
	switch {
	case info.APIGroup == "" && info.Resource == "pods":
		t.pod = &corev1.Pod{}
		if err := u.get(ctx, path, nil, t.pod); err != nil {
			return nil, err
		}
		if t.pod.Status.Phase != corev1.PodRunning {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("the pod does not run: it is %s", t.pod.Status.Phase))
		}
		t.port, err = podPort(t.pod, port)
	case info.APIGroup == "" && info.Resource == "services":
		var s corev1.Service
		if err := u.get(ctx, path, nil, &s); err != nil {
			return nil, err
		}
		if t.pod, err = u.readyPod(ctx, &s); err != nil {
			return nil, err
		}
		t.port, err = servicePort(&s, t.pod, port)
	default:
		err = errors.New("a forward leads to a pod or a Service")
	}
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return t, nil
}

// readyPod returns a ready pod of a Service: the first by name.
func (u *user) readyPod(ctx context.Context, s *corev1.Service) (*corev1.Pod, error) {
	if len(s.Spec.Selector) == 0 {
		return nil, apierrors.NewBadRequest("this Service selects no pods")
	}
	selector := metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: s.Spec.Selector})
	var pods corev1.PodList
	query := url.Values{"labelSelector": {selector}, "limit": {"500"}}
	if err := u.get(ctx, "/api/v1/namespaces/"+url.PathEscape(s.Namespace)+"/pods", query, &pods); err != nil {
		return nil, err
	}
	slices.SortFunc(pods.Items, func(a, b corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	for i, pod := range pods.Items {
		ready := slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
		if ready && pod.DeletionTimestamp == nil && pod.Status.Phase == corev1.PodRunning {
			return &pods.Items[i], nil
		}
	}
	return nil, apierrors.NewBadRequest("no pod of this Service is ready")
}

// podPort returns a port of a pod, by its number or its name.
func podPort(pod *corev1.Pod, port string) (int, error) {
	number, err := strconv.ParseUint(port, 10, 16)
	udp := false
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		for _, p := range c.Ports {
			if err == nil && int(p.ContainerPort) != int(number) || err != nil && (p.Name != port || port == "") { //nolint:gosec // 16 bits
				continue
			}
			if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
				udp = true
				continue
			}
			return int(p.ContainerPort), nil
		}
	}
	switch {
	case udp:
		return 0, fmt.Errorf("port %s is not one of TCP: no other can be forwarded", port)
	case err != nil:
		return 0, fmt.Errorf("no container of the pod has a port of the name %q", port)
	case number == 0:
		return 0, errors.New("0 is no port")
	}
	return int(number), nil //nolint:gosec // 16 bits
}

// servicePort returns the pod's port that a port of a Service targets.
func servicePort(s *corev1.Service, pod *corev1.Pod, port string) (int, error) {
	for _, p := range s.Spec.Ports {
		if strconv.Itoa(int(p.Port)) != port && (p.Name != port || port == "") {
			continue
		}
		switch {
		case p.Protocol != "" && p.Protocol != corev1.ProtocolTCP:
			continue
		case s.Spec.ClusterIP == corev1.ClusterIPNone, p.TargetPort.Type == intstr.Int && p.TargetPort.IntVal == 0:
			return int(p.Port), nil
		case p.TargetPort.Type == intstr.Int:
			return int(p.TargetPort.IntVal), nil
		}
		return podPort(pod, p.TargetPort.StrVal)
	}
	return 0, fmt.Errorf("the Service has no port %q of TCP", port)
}
