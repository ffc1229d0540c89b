// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/controllers/servicelb"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

// keepFor returns how long the Service is kept without an Ingress. Other controllers' Services, such as those of
// ingress-nginx or of Gateways, may wait for its ports.
func (c *Controller) keepFor(own *corev1.Service) time.Duration {
	all, _ := c.services.List(labels.Everything()) // a lister of a cache returns no error
	if slices.ContainsFunc(all, func(svc *corev1.Service) bool { return waitsForAddress(svc, own) }) {
		return yieldAfter
	}
	return unusedFor
}

// waitsForAddress reports whether a Service waits for a port of the ingress' Service: it shares one, has the same load
// balancer, and lacks an address or some addresses.
func waitsForAddress(svc, own *corev1.Service) bool {
	return len(sharedPorts(svc, own)) > 0 && (len(svc.Status.LoadBalancer.Ingress) == 0 || refusedPort(svc))
}

// refusedPort reports whether servicelb says that another Service or program has a port of the Service.
func refusedPort(svc *corev1.Service) bool {
	condition := meta.FindStatusCondition(svc.Status.Conditions, loadbalancer.Condition)
	return condition != nil && condition.Reason == servicelb.ReasonPortInUse
}

// sharedPorts returns the ports of the ingress' Service that another Service of the same load balancer asks for, as
// text.
func sharedPorts(svc, own *corev1.Service) []string {
	class := func(s *corev1.Service) string { return ptr.Deref(s.Spec.LoadBalancerClass, servicelb.Class) }
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer || svc.DeletionTimestamp != nil || class(svc) != class(own) ||
		svc.Namespace == own.Namespace && svc.Name == own.Name {
		return nil
	}
	var out []string
	for _, p := range portTexts(own) {
		if slices.Contains(portTexts(svc), p) {
			out = append(out, p)
		}
	}
	return out
}

func portTexts(svc *corev1.Service) []string {
	return convert.Slice(svc.Spec.Ports, func(p corev1.ServicePort) string { return loadbalancer.PortOf(p.Protocol, p.Port).String() })
}

// warnWaiting adds a warning about each Service that waits for ports while there are Ingresses.
func (c *Controller) warnWaiting(served []*networkingv1.Ingress) {
	own := c.ownService()
	if len(served) == 0 || own == nil {
		return
	}
	all, _ := c.services.List(labels.Everything()) // a lister of a cache returns no error
	for _, svc := range all {
		if ports := sharedPorts(svc, own); len(ports) > 0 && refusedPort(svc) {
			c.warnings.Add(svc, ReasonPortInUse,
				"%s/%s has %s while there are Ingresses of its classes, such as %s/%s. It gives them up %s after the last one has gone or has "+
					"another class. Until then, give this Service other ports, or addresses of a pool", metav1.NamespaceSystem, table.Service,
				strings.Join(ports, ", "), served[0].Namespace, served[0].Name, yieldAfter)
		}
	}
}
