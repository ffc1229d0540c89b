// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/coracle-k8s/coracle/controllers/servicelb"
	"github.com/coracle-k8s/coracle/ingress/gateway"
	"github.com/coracle-k8s/coracle/ingress/gatewayapi"
	"github.com/coracle-k8s/coracle/ingress/table"
)

const (
	managedBy, managerName = "app.kubernetes.io/managed-by", "coracle"
	// fieldManager is the field manager of the fields applied to Services.
	fieldManager = "coracle-gateway"
	// sliceManager is the manager label of coracle's EndpointSlices, which upstream's controllers then do not touch.
	sliceManager = "gateway.coracle.dev"
	// maxPorts is the greatest number of node ports of one namespace: half of them.
	maxPorts = (table.LastGatewayPort - table.FirstGatewayPort + 1) / 2
)

// choosePorts allocates a node port to each site: its present one, or the lowest free one. Ports of sites that are not
// wanted any more become free. It returns the data of the ConfigMap, and the sites without a port. A namespace gets
// maxPorts at most.
func choosePorts(have map[string]uint16, sites []string) (data map[string]string, without []string) {
	data = map[string]string{}
	slices.Sort(sites)
	var fresh []string
	of := map[string]int{}
	for _, site := range sites {
		if port, ok := have[site]; ok {
			data[strconv.Itoa(int(port))] = site
			of[namespaceOf(site)]++
		} else {
			fresh = append(fresh, site)
		}
	}
	next := table.FirstGatewayPort
	for _, site := range fresh {
		for ; next <= table.LastGatewayPort && data[strconv.Itoa(next)] != ""; next++ {
		}
		if next > table.LastGatewayPort || of[namespaceOf(site)] >= maxPorts {
			without = append(without, site)
			continue
		}
		data[strconv.Itoa(next)] = site
		of[namespaceOf(site)]++
	}
	return data, without
}

func namespaceOf(site string) string {
	namespace, _, _ := strings.Cut(site, ":")
	return namespace
}

func sitesOf(services map[types.NamespacedName]gateway.Service) []string {
	var out []string
	for _, s := range services {
		for _, port := range s.Ports {
			out = append(out, gateway.Site(s.Gateway.Namespace, s.Gateway.Name, port))
		}
	}
	return out
}

func portName(port int32) string { return "port-" + strconv.Itoa(int(port)) }

// serviceConfig returns the fields of a Gateway's Service that coracle owns. Other fields are an administrator's:
// source ranges, the class of the load balancer.
func serviceConfig(name types.NamespacedName, want gateway.Service) *corev1ac.ServiceApplyConfiguration {
	spec := corev1ac.ServiceSpec().WithType(corev1.ServiceTypeLoadBalancer).
		WithExternalTrafficPolicy(corev1.ServiceExternalTrafficPolicyLocal). // keeps clients' addresses
		WithIPFamilyPolicy(corev1.IPFamilyPolicyPreferDualStack)
	for _, port := range want.Ports {
		spec.WithPorts(corev1ac.ServicePort().WithName(portName(port)).WithPort(port).WithProtocol(corev1.ProtocolTCP).
			WithTargetPort(intstr.FromString(portName(port))))
	}
	owner := metav1ac.OwnerReference().WithAPIVersion(gatewayv1.GroupVersion.String()).WithKind("Gateway").
		WithName(want.Gateway.Name).WithUID(want.Gateway.UID).WithController(true).WithBlockOwnerDeletion(true)
	svc := corev1ac.Service(name.Name, name.Namespace).WithOwnerReferences(owner).WithSpec(spec).WithAnnotations(want.Annotations).
		WithLabels(want.Labels).WithLabels(map[string]string{
		table.GatewayLabel: gateway.LabelValue(want.Gateway.Name), managedBy: managerName,
	})
	if len(want.Addresses) > 0 {
		svc.WithAnnotations(map[string]string{servicelb.AddressesAnnotation: strings.Join(want.Addresses, ",")})
	}
	return svc
}

// upToDate reports whether a Service has the wanted values. It does not detect applied fields that are not wanted any
// more.
func upToDate(svc *corev1.Service, want *corev1ac.ServiceApplyConfiguration) bool {
	for _, of := range []struct{ have, want map[string]string }{{svc.Labels, want.Labels}, {svc.Annotations, want.Annotations}} {
		for k, v := range of.want {
			if have, ok := of.have[k]; !ok || have != v {
				return false
			}
		}
	}
	same := slices.EqualFunc(svc.Spec.Ports, want.Spec.Ports, func(a corev1.ServicePort, b corev1ac.ServicePortApplyConfiguration) bool {
		return a.Port == *b.Port && a.Name == *b.Name && a.Protocol == *b.Protocol && a.TargetPort == *b.TargetPort
	})
	return same && svc.Spec.Type == *want.Spec.Type && svc.Spec.ExternalTrafficPolicy == *want.Spec.ExternalTrafficPolicy
}

func isOf(svc *corev1.Service, g *gatewayv1.Gateway) bool {
	owner := metav1.GetControllerOf(svc)
	return owner != nil && owner.UID == g.UID
}

// madeForGateway reports whether a Service was made for any Gateway, by its label and its owner.
func madeForGateway(svc *corev1.Service) bool {
	owner := metav1.GetControllerOf(svc)
	return svc.Labels[table.GatewayLabel] != "" && svc.Labels[managedBy] == managerName && owner != nil && owner.Kind == "Gateway" &&
		strings.HasPrefix(owner.APIVersion, gatewayv1.GroupName+"/")
}

// servedBy returns the ports at which a node serves a Gateway, by the names of its Service's ports. It reads the node's
// annotation.
func servedBy(n *corev1.Node, want gateway.Service, ports map[string]uint16) map[string]int32 {
	portNames := map[string]bool{}
	for field := range strings.SplitSeq(n.Annotations[table.NodeAnnotation], ",") {
		portNames[field] = true
	}
	out := map[string]int32{}
	for _, port := range want.Ports {
		site := gateway.Site(want.Gateway.Namespace, want.Gateway.Name, port)
		if node := ports[site]; node != 0 && portNames[strconv.Itoa(int(node))+"="+table.SiteMark(site)] {
			out[portName(port)] = int32(node)
		}
	}
	return out
}

func portsObject(data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: gatewayapi.PortsName,
			Labels: map[string]string{managedBy: managerName}}, Data: data,
	}
}
