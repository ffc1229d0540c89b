// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// StatusOf is the status that a Service has to have, and whether that is another one than it has.
func StatusOf(svc *corev1.Service, v Allocation) (*corev1.ServiceStatus, bool) {
	have := meta.FindStatusCondition(svc.Status.Conditions, Condition)
	if !v.Ours && have == nil && v.refused == "" && meta.FindStatusCondition(svc.Status.Conditions, NodePortCondition) == nil {
		return &svc.Status, false // another controller's, as most are
	}
	out := svc.Status.DeepCopy()
	changed := nodePorts(&out.Conditions, v.refused)
	if !v.Ours && have == nil {
		return out, changed // another controller gave the addresses
	}
	out.LoadBalancer = corev1.LoadBalancerStatus{}
	if !v.Ours {
		meta.RemoveStatusCondition(&out.Conditions, Condition)
		meta.RemoveStatusCondition(&out.Conditions, KeptCondition)
		return out, true
	}
	mode := corev1.LoadBalancerIPModeVIP // every node's proxy takes what is for these addresses
	var ports []corev1.PortStatus        // what it has at nodes' addresses; one of a pool is its own
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
		Type: Condition, Status: status, Reason: v.Reason, Message: v.Message, ObservedGeneration: observed(have, svc, v, status),
	}) || changed
	if text := addressPortsText(v.kept); text != "" {
		changed = meta.SetStatusCondition(&out.Conditions, metav1.Condition{Type: KeptCondition, Status: metav1.ConditionTrue,
			Reason: "NotServedNow", Message: text}) || changed
	} else {
		changed = meta.RemoveStatusCondition(&out.Conditions, KeptCondition) || changed
	}
	return out, changed || !apiequality.Semantic.DeepEqual(out.LoadBalancer, svc.Status.LoadBalancer)
}

// nodePorts says in a Service's conditions which node ports are not opened, and returns whether that is news.
func nodePorts(conditions *[]metav1.Condition, refused string) bool {
	if refused == "" {
		return meta.RemoveStatusCondition(conditions, NodePortCondition)
	}
	return meta.SetStatusCondition(conditions, metav1.Condition{Type: NodePortCondition, Status: metav1.ConditionFalse,
		Reason: ReasonNodePortInUse, Message: refused})
}

// observed is the generation of the Service's spec for which the condition was made: a new one alone is worth no write.
func observed(have *metav1.Condition, svc *corev1.Service, v Allocation, status metav1.ConditionStatus) int64 {
	if have != nil && have.Status == status && have.Reason == v.Reason && have.Message == v.Message {
		return have.ObservedGeneration
	}
	return svc.Generation
}
