// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

// StatusOf returns the desired status of a Service, and whether it differs from the present one.
func StatusOf(svc *corev1.Service, v Allocation) (*corev1.ServiceStatus, bool) {
	have := meta.FindStatusCondition(svc.Status.Conditions, Condition)
	if !v.Ours && have == nil && v.refused == "" && meta.FindStatusCondition(svc.Status.Conditions, NodePortCondition) == nil {
		return &svc.Status, false // another controller's Service, as most are
	}
	out := svc.Status.DeepCopy()
	changed := nodePorts(&out.Conditions, v.refused)
	if !v.Ours && have == nil {
		return out, changed // another controller allocated the addresses
	}
	out.LoadBalancer = corev1.LoadBalancerStatus{}
	if !v.Ours {
		meta.RemoveStatusCondition(&out.Conditions, Condition)
		meta.RemoveStatusCondition(&out.Conditions, loadbalancer.Kept)
		return out, true
	}
	mode := corev1.LoadBalancerIPModeVIP // each node's proxy accepts packets for these addresses
	var ports []corev1.PortStatus        // only at nodes' addresses: one of a pool belongs to the Service
	if !v.Pool {
		for _, p := range portsOf(svc) {
			ports = append(ports, corev1.PortStatus{Port: p.Number, Protocol: p.Protocol})
		}
	}
	for _, a := range v.Addresses {
		out.LoadBalancer.Ingress = append(out.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a.String(), IPMode: &mode, Ports: ports})
	}
	status := metav1.ConditionTrue
	if len(v.Addresses) == 0 {
		status = metav1.ConditionFalse
	}
	changed = meta.SetStatusCondition(&out.Conditions, metav1.Condition{
		Type: Condition, Status: status, Reason: v.Reason, Message: v.Message, ObservedGeneration: observedGeneration(have, svc, v, status),
	}) || changed
	if text := loadbalancer.WriteKept(v.heldPorts); text != "" {
		changed = meta.SetStatusCondition(&out.Conditions, metav1.Condition{Type: loadbalancer.Kept, Status: metav1.ConditionTrue,
			Reason: "NotServedNow", Message: text}) || changed
	} else {
		changed = meta.RemoveStatusCondition(&out.Conditions, loadbalancer.Kept) || changed
	}
	return out, changed || !apiequality.Semantic.DeepEqual(out.LoadBalancer, svc.Status.LoadBalancer)
}

// nodePorts sets the condition about node ports that are not opened. It returns whether the condition has changed.
func nodePorts(conditions *[]metav1.Condition, refused string) bool {
	if refused == "" {
		return meta.RemoveStatusCondition(conditions, NodePortCondition)
	}
	return meta.SetStatusCondition(conditions, metav1.Condition{Type: NodePortCondition, Status: metav1.ConditionFalse,
		Reason: ReasonNodePortInUse, Message: refused})
}

// observedGeneration returns the observedGeneration of a Service's condition. If the condition is otherwise unchanged,
// that is the old one: a change of the generation alone causes no write.
func observedGeneration(have *metav1.Condition, svc *corev1.Service, v Allocation, status metav1.ConditionStatus) int64 {
	if have != nil && have.Status == status && have.Reason == v.Reason && have.Message == v.Message {
		return have.ObservedGeneration
	}
	return svc.Generation
}
