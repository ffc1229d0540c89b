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

// servicesLabels keep the Services of load balancers to the nodes that have one of them.
var servicesLabels = []string{clusterconfig.LoadBalancerLabel, clusterconfig.K3sLoadBalancerLabel}

// servicesLabel is one of those labels in which two versions of a Node differ; empty if there is none.
func servicesLabel(now, old *core.Node) string {
	for _, label := range servicesLabels {
		is, has := now.Labels[label]
		if was, had := old.Labels[label]; has != had || is != was {
			return label
		}
	}
	return ""
}

// withoutServicesLabel takes these labels from a Node that registers, unless its machine was let in a moment ago: then
// it has them from --node-label, and the user who had the token or the server wanted that. A node whose Node was
// deleted can make it again with its certificate alone, and registers without the label; it is not refused, since its
// pods would be no node's.
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

// mayHaveBesideServices says whether an address is no Service's of its own: one that the load balancer gave out of a
// pool. Those with ports are nodes' addresses.
func (p *nodeClaims) mayHaveBesideServices(ip netip.Addr) error {
	if p.services == nil {
		return nil // of a test
	}
	services, err := p.services.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("looking for Services with the address %s: %w", ip, err)
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
			return fmt.Errorf("%s is the address of the Service %s/%s, from a pool: take it off this machine, or out of the pool", ip,
				svc.Namespace, svc.Name)
		}
	}
	return nil
}
