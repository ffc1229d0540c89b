// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	nodeutil "k8s.io/kubernetes/pkg/util/node"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

const (
	// managedBy and manager are the label of the Service.
	managedBy, managerName = "app.kubernetes.io/managed-by", "coracle"
	// sliceManager is the manager label of coracle's EndpointSlices, which upstream's controllers then do not touch.
	sliceManager = "ingress.coracle.dev"
	// perSlice is the greatest number of endpoints of a slice, as upstream's default.
	perSlice = 100
)

// desiredService returns the Service as it is created. Later changes by an administrator stay: labels, annotations, the
// class, addresses and source ranges.
func desiredService(http3 bool) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceSystem, Name: table.Service, Labels: map[string]string{managedBy: managerName,
				"app.kubernetes.io/name": table.Service},
		},
		Spec: corev1.ServiceSpec{
			// keeps clients' addresses
			Type: corev1.ServiceTypeLoadBalancer, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal,
			IPFamilyPolicy: ptr.To(corev1.IPFamilyPolicyPreferDualStack),
			Ports: []corev1.ServicePort{
				{Name: table.HTTP, Port: table.HTTPPort, TargetPort: intstr.FromString(table.HTTP), Protocol: corev1.ProtocolTCP,
					AppProtocol: ptr.To("http")},
				{Name: table.HTTPS, Port: table.HTTPSPort, TargetPort: intstr.FromString(table.HTTPS), Protocol: corev1.ProtocolTCP,
					AppProtocol: ptr.To("https")},
			},
		},
	}
	if http3 {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{
			Name: table.QUIC, Port: table.HTTPSPort, TargetPort: intstr.FromString(table.QUIC), Protocol: corev1.ProtocolUDP,
			AppProtocol: ptr.To("http3"),
		})
	}
	return svc
}

// udpConflict returns a load balancer's Service that has or requests the UDP port of HTTP/3. If the ingress' Service
// had that port as well, it would get no address beside it.
func udpConflict(services []*corev1.Service) *corev1.Service {
	for _, svc := range services {
		if svc.Spec.Type == corev1.ServiceTypeLoadBalancer && slices.ContainsFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool {
			return p.Port == table.HTTPSPort && p.Protocol == corev1.ProtocolUDP
		}) {
			return svc
		}
	}
	return nil
}

// portsOf returns the ports at which a node serves, by its annotation. There are none when it does not serve.
func portsOf(n *corev1.Node) map[string]int32 {
	out := map[string]int32{}
	for text := range strings.SplitSeq(n.Annotations[table.NodeAnnotation], ",") {
		name, number, _ := strings.Cut(text, "=")
		port, err := strconv.ParseUint(number, 10, 16)
		if err == nil && port > 0 && slices.Contains([]string{table.HTTP, table.HTTPS, table.QUIC}, name) {
			out[name] = int32(port)
		}
	}
	return out
}

// BusyPorts returns the ports of the Service at which other programs of a node listen. They keep the node from being an
// endpoint. If the Service has addresses that belong to no node, such as those of a pool, there is no conflict.
func BusyPorts(svc *corev1.Service, n *corev1.Node, nodes []*corev1.Node) []int32 {
	if ownAddresses(svc, nodes) {
		return nil
	}
	var out []int32
	for text := range strings.SplitSeq(n.Annotations[table.NodeAnnotation], ",") {
		number, busy := strings.CutPrefix(text, table.BusyEntry+"=")
		port, err := strconv.ParseUint(number, 10, 16)
		if busy && err == nil && slices.ContainsFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == int32(port) }) {
			out = append(out, int32(port))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// ownAddresses reports whether the Service has addresses that belong to no node.
func ownAddresses(svc *corev1.Service, nodes []*corev1.Node) bool {
	ofNode := map[string]bool{}
	for _, n := range nodes {
		for _, a := range n.Status.Addresses {
			ofNode[a.Address] = true
		}
	}
	return slices.ContainsFunc(svc.Status.LoadBalancer.Ingress, func(at corev1.LoadBalancerIngress) bool {
		return at.IP != "" && !ofNode[at.IP] || at.Hostname != ""
	})
}

func slicesOf(nodes []*corev1.Node) map[string]*discoveryv1.EndpointSlice {
	return Slices(types.NamespacedName{Namespace: metav1.NamespaceSystem, Name: table.Service}, sliceManager, nodes, portsOf)
}

// Slices returns, by name, the EndpointSlices of a Service with the nodes that serve it. Nodes with the same ports
// share slices. portsOf returns the ports at which a node serves, by the names of the Service's ports.
func Slices(
	service types.NamespacedName, manager string, nodes []*corev1.Node, portsOf func(*corev1.Node) map[string]int32,
) map[string]*discoveryv1.EndpointSlice {
	type group struct {
		family discoveryv1.AddressType
		ports  string
	}
	nodes = slices.SortedFunc(slices.Values(nodes), func(a, b *corev1.Node) int { return strings.Compare(a.Name, b.Name) })
	endpoints, ports := map[group][]discoveryv1.Endpoint{}, map[group]map[string]int32{}
	for _, n := range nodes {
		at := portsOf(n)
		if len(at) == 0 || n.DeletionTimestamp != nil {
			continue
		}
		ready := nodeutil.IsNodeReady(n)
		for family, address := range internalIPs(n) {
			g := group{family, portsText(at)}
			ports[g] = at
			endpoints[g] = append(endpoints[g], discoveryv1.Endpoint{
				Addresses: []string{address}, NodeName: ptr.To(n.Name), Zone: zoneOf(n),
				Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready, Terminating: ptr.To(false)},
			})
		}
	}
	out := map[string]*discoveryv1.EndpointSlice{}
	for g, all := range endpoints {
		number := 0
		for part := range slices.Chunk(all, perSlice) {
			s := newSlice(g.family, ports[g], part)
			s.Namespace = service.Namespace
			s.Labels = map[string]string{discoveryv1.LabelServiceName: service.Name, discoveryv1.LabelManagedBy: manager}
			sum := sha256.Sum256([]byte(g.ports))
			s.Name = strings.Join([]string{service.Name, strings.ToLower(string(g.family)), hex.EncodeToString(sum[:4]),
				strconv.Itoa(number)}, "-")
			out[s.Name] = s
			number++
		}
	}
	return out
}

func portsText(at map[string]int32) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(at)) {
		out = append(out, name+"="+strconv.Itoa(int(at[name])))
	}
	return strings.Join(out, ",")
}

func newSlice(family discoveryv1.AddressType, at map[string]int32, endpoints []discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{AddressType: family, Endpoints: endpoints}
	for _, name := range slices.Sorted(maps.Keys(at)) {
		protocol := corev1.ProtocolTCP
		if name == table.QUIC {
			protocol = corev1.ProtocolUDP
		}
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: ptr.To(name), Port: ptr.To(at[name]), Protocol: &protocol})
	}
	return s
}

// internalIPs returns the internal addresses of a node, the first of each family.
func internalIPs(n *corev1.Node) map[discoveryv1.AddressType]string {
	out := map[discoveryv1.AddressType]string{}
	for _, ip := range clusterconfig.NodeAddresses(n, corev1.NodeInternalIP) {
		family := discoveryv1.AddressTypeIPv6
		if ip.Is4() {
			family = discoveryv1.AddressTypeIPv4
		}
		out[family] = cmp.Or(out[family], ip.String())
	}
	return out
}

func zoneOf(n *corev1.Node) *string {
	if zone := n.Labels[corev1.LabelTopologyZone]; zone != "" {
		return &zone
	}
	return nil
}

// statusOf returns the desired status of an Ingress: the addresses of the Service. It returns nil when the Ingress has
// that status already.
func statusOf(ing *networkingv1.Ingress, svc *corev1.Service) *networkingv1.IngressStatus {
	want := networkingv1.IngressStatus{}
	if svc != nil {
		for _, at := range svc.Status.LoadBalancer.Ingress {
			want.LoadBalancer.Ingress = append(want.LoadBalancer.Ingress, networkingv1.IngressLoadBalancerIngress{IP: at.IP,
				Hostname: at.Hostname})
		}
	}
	same := slices.EqualFunc(want.LoadBalancer.Ingress, ing.Status.LoadBalancer.Ingress,
		func(a, b networkingv1.IngressLoadBalancerIngress) bool {
			return a.IP == b.IP && a.Hostname == b.Hostname
		})
	if same {
		return nil
	}
	return &want
}
