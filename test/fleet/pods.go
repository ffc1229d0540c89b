// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// Stages are those of a pod that a kubelet reports.
const (
	creating = iota
	running
	ended
)

// followPods follows the pods that are bound to the node, until ctx is done, and does of them what a kubelet does: one
// request after the other, as its status manager sends them.
func (n *node) followPods(ctx context.Context) {
	revision := ""
	for ctx.Err() == nil {
		n.again(ctx, "watch its pods", func(ctx context.Context) error {
			o := metav1.ListOptions{
				FieldSelector: "spec.nodeName=" + n.name, AllowWatchBookmarks: true, ResourceVersion: revision,
				TimeoutSeconds: new(int64((minWatch + rand.N(minWatch)).Seconds())),
			}
			if revision == "" {
				o.SendInitialEvents, o.ResourceVersionMatch = new(true), metav1.ResourceVersionMatchNotOlderThan
			}
			w, err := n.core.Pods(metav1.NamespaceAll).Watch(ctx, o)
			if err != nil {
				revision = ""
				return err
			}
			defer w.Stop()
			for e := range w.ResultChan() {
				p, ok := e.Object.(*corev1.Pod)
				if !ok && revision != "" {
					revision = "" // the server has forgotten it
					return nil
				}
				if !ok {
					return fmt.Errorf("%w: %v", errRefused, e.Object)
				}
				revision = p.ResourceVersion
				n.see(ctx, e.Type, p)
			}
			return nil
		})
	}
}

// see takes note of each change of a pod's.
func (n *node) see(ctx context.Context, change watch.EventType, p *corev1.Pod) {
	id := string(p.UID)
	ending, begun := n.pods[id]
	switch {
	case change == watch.Bookmark:
	case change == watch.Deleted:
		delete(n.pods, id)
	case p.DeletionTimestamp != nil && !ending:
		n.pods[id] = true
		n.again(ctx, "end a pod", func(ctx context.Context) error { return n.end(ctx, p) })
	case p.DeletionTimestamp == nil && !begun:
		n.pods[id] = false
		n.again(ctx, "start a pod", func(ctx context.Context) error { return n.start(ctx, p) })
	}
}

// start asks for what a pod needs, and says that it runs.
func (n *node) start(ctx context.Context, p *corev1.Pod) error {
	if p.Status.Phase == corev1.PodRunning {
		return nil
	}
	if err := n.reportPod(ctx, p, creating); err != nil {
		return ignoreNotFound(err)
	}
	for _, v := range p.Spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.ServiceAccountToken != nil {
				if err := n.token(ctx, p, s.ServiceAccountToken); err != nil {
					return err
				}
			}
			if s.ConfigMap != nil && !n.configMaps[p.Namespace] {
				n.configMaps[p.Namespace] = true
				n.watch(ctx, n.kubelet, authority(p.Namespace))
			}
		}
	}
	for _, reason := range []string{"Pulled", "Created", "Started"} {
		if err := n.event(ctx, p, reason); err != nil {
			return err
		}
	}
	return ignoreNotFound(n.reportPod(ctx, p, running))
}

// end says that a pod's containers have ended, and that nothing is left of it.
func (n *node) end(ctx context.Context, p *corev1.Pod) error {
	if err := n.event(ctx, p, "Killing"); err != nil {
		return err
	}
	err := n.reportPod(ctx, p, ended)
	if err == nil {
		err = n.core.Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0)), Preconditions: &metav1.Preconditions{UID: &p.UID}})
	}
	return ignoreNotFound(err)
}

// ignoreNotFound takes a pod that is not there any more, or is another one of the same name, for done.
func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) || errors.Is(err, errOther) {
		return nil
	}
	return err
}

var errOther = errors.New("there is another pod of that name by now")

// token asks for a pod's token.
func (n *node) token(ctx context.Context, p *corev1.Pod, want *corev1.ServiceAccountTokenProjection) error {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: want.ExpirationSeconds, BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.Name, UID: p.UID}}}
	if want.Audience != "" {
		request.Spec.Audiences = []string{want.Audience}
	}
	_, err := n.core.ServiceAccounts(p.Namespace).CreateToken(ctx, p.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	return err
}

// event tells of something that a kubelet tells of.
func (n *node) event(ctx context.Context, p *corev1.Pod, reason string) error {
	now := metav1.Now()
	e := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s.%x", p.Name, time.Now().UnixNano()), Namespace: p.Namespace},
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion,
			FieldPath: "spec.containers{" + p.Spec.Containers[0].Name + "}"},
		Reason: reason, Message: "Container " + p.Spec.Containers[0].Name + ": " + reason, Type: corev1.EventTypeNormal, Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Source: corev1.EventSource{Component: "kubelet", Host: n.name}, ReportingController: "kubelet", ReportingInstance: n.name,
	}
	_, err := n.core.Events(p.Namespace).CreateWithEventNamespaceWithContext(ctx, e)
	if apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil
	}
	return err
}

// reportPod reports a pod's status: a kubelet looks at the pod first.
func (n *node) reportPod(ctx context.Context, p *corev1.Pod, stage int) error {
	pods := n.core.Pods(p.Namespace)
	now, err := pods.Get(ctx, p.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if now.UID != p.UID {
		return errOther
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.UID}, "status": n.status(now, stage)})
	if err != nil {
		return err
	}
	_, err = pods.Patch(ctx, p.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// status is a pod's at a stage.
func (n *node) status(p *corev1.Pod, stage int) corev1.PodStatus {
	now := metav1.Now()
	is := func(kind corev1.PodConditionType, yes bool) corev1.PodCondition {
		c := corev1.PodCondition{Type: kind, Status: corev1.ConditionFalse, LastTransitionTime: now}
		if yes {
			c.Status = corev1.ConditionTrue
		}
		return c
	}
	s := corev1.PodStatus{Phase: corev1.PodPending, HostIP: n.ip.String(), HostIPs: []corev1.HostIP{{IP: n.ip.String()}}, StartTime: p.Status.StartTime, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs}
	if s.StartTime == nil {
		s.StartTime = &now
	}
	if stage == running {
		s.Phase, s.PodIP = corev1.PodRunning, n.address()
		s.PodIPs = []corev1.PodIP{{IP: s.PodIP}}
	}
	s.Conditions = []corev1.PodCondition{is(corev1.PodReadyToStartContainers, stage == running), is(corev1.PodInitialized, true), is(corev1.PodReady, stage == running), is(corev1.ContainersReady, stage == running)}
	for _, c := range p.Spec.Containers {
		state := corev1.ContainerStatus{Name: c.Name, Image: c.Image, Started: new(stage == running), Ready: stage == running}
		id := fmt.Sprintf("containerd://%064x", p.UID)
		switch stage {
		case creating:
			state.State.Waiting = &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}
		case running:
			state.State.Running = &corev1.ContainerStateRunning{StartedAt: now}
		default:
			s.Phase = corev1.PodFailed
			state.State.Terminated = &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "Error", StartedAt: *s.StartTime, FinishedAt: now, ContainerID: id}
		}
		if stage != creating {
			state.ContainerID, state.ImageID = id, c.Image+"@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
		}
		s.ContainerStatuses = append(s.ContainerStatuses, state)
	}
	return s
}

// address is one of the node's network for a pod: the next one, over and over.
func (n *node) address() string {
	b := n.subnet.Addr().As4()
	b[3] = byte(2 + n.addresses%250)
	n.addresses++
	return netip.AddrFrom4(b).String()
}
