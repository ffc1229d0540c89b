// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/warning"
	core "k8s.io/kubernetes/pkg/apis/core"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

// servicesLabels limit load balancer Services to the nodes that have one of these labels, if any node has one.
var servicesLabels = []string{clusterconfig.LoadBalancerLabel, clusterconfig.K3sLoadBalancerLabel}

// servicesLabel returns one of servicesLabels in which two versions of a Node differ, or an empty string.
func servicesLabel(now, old *core.Node) string {
	for _, label := range servicesLabels {
		is, has := now.Labels[label]
		if was, had := old.Labels[label]; has != had || is != was {
			return label
		}
	}
	return ""
}

// withoutServicesLabel removes servicesLabels from a Node that is being created, unless its machine was admitted a
// moment ago. In that case the labels come from --node-label, which the user who had the token or the server set. A
// node whose Node object was deleted can create it again with its certificate alone, and then gets it without the
// labels. It is not refused, since its pods would otherwise have no node.
func (p *nodeClaims) withoutServicesLabel(ctx context.Context, a admission.Attributes, node *core.Node) error {
	label := servicesLabel(node, &core.Node{})
	if label == "" || p.JustJoined == nil || node.Name == p.Own {
		return nil
	}
	joined, err := p.JustJoined(ctx, node.Name)
	if err != nil {
		return admission.NewForbidden(a, err)
	}
	if joined {
		return nil
	}
	for _, l := range servicesLabels {
		delete(node.Labels, l)
	}
	warning.AddWarning(ctx, "",
		fmt.Sprintf("the label %s is left out, since the machine has not just joined: give it with kubectl label node %s", label,
			node.Name))
	return nil
}

// mayHaveBesideServices returns an error if a Service has the address from a load balancer pool. Addresses with ports
// are not checked: they are nodes' addresses.
func (p *nodeClaims) mayHaveBesideServices(ip netip.Addr) error {
	if p.services == nil {
		return nil // only in tests
	}
	services, err := p.services.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("finding Services with the address %s: %w", ip, err)
	}
	for _, svc := range services {
		if svc.Spec.Type != corev1.ServiceTypeLoadBalancer || meta.FindStatusCondition(svc.Status.Conditions,
			loadbalancer.Condition) == nil {
			continue
		}
		if slices.ContainsFunc(svc.Status.LoadBalancer.Ingress, func(in corev1.LoadBalancerIngress) bool {
			a, err := netip.ParseAddr(in.IP)
			return err == nil && a.Unmap() == ip && len(in.Ports) == 0
		}) {
			return fmt.Errorf("%s is the address of the Service %s/%s, from a pool: remove it from this machine or from the pool", ip,
				svc.Namespace, svc.Name)
		}
	}
	return nil
}
