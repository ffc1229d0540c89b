// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/klog/v2/ktesting"

	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/proxy"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/services"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// serviceLab is a lab with a machine outside, pods of another node (which have no sandbox here, so that their own
// policies do not count), and two Services for each pod: one that has all kinds of addresses, and a load balancer with
// the policy Local.
type serviceLab struct{ *lab }

var (
	labNode = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	dnsIPs  = []netip.Addr{netip.MustParseAddr("10.43.0.10"), netip.MustParseAddr("fd43::a")}
)

const dnsTarget = 10053

// offered are the ports of every Service; each has another number than its pod's.
var offered = []corev1.ServicePort{
	{Name: "a", Protocol: corev1.ProtocolTCP, Port: 1080, TargetPort: intstr.FromInt32(80)},
	{Name: "b", Protocol: corev1.ProtocolTCP, Port: 9080, TargetPort: intstr.FromInt32(8080)},
	{Name: "c", Protocol: corev1.ProtocolUDP, Port: 1053, TargetPort: intstr.FromInt32(53)},
	{Name: "d", Protocol: corev1.ProtocolUDP, Port: 1080, TargetPort: intstr.FromInt32(80)},
}

// way is how a pod is reached through a Service.
type way int

const (
	byClusterIP way = iota
	byExternalIP
	byNodePort
	byBalancer // a load balancer's address, externalTrafficPolicy: Local
	ways
)

func (w way) String() string {
	return []string{"cluster IP", "external IP", "node port", "load balancer"}[w]
}

// networks are those of the addresses, by family.
var networks = map[way][2]string{
	byClusterIP: {"10.43.1.%d", "fd43::1:%x"}, byExternalIP: {"198.18.1.%d", "2001:db8:1::%x"}, byBalancer: {"198.18.2.%d", "2001:db8:2::%x"},
}

func addressFor(w way, pod, family int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf(networks[w][family], pod+1))
}

func newServiceLab(t *testing.T, mode string) *serviceLab {
	l := &serviceLab{newLab(t, dozen())}
	for _, p := range l.Pods {
		if p.Spec.NodeName != l.Node {
			l.plug(addressesOf(p))
		}
	}
	ns := netns.NewOutside(t)
	for _, ip := range outside {
		l.ns[ip] = ns
		testenv.NoError(t, ns.Do(func() error { return netns.AddAddress("eth0", netip.PrefixFrom(ip, ip.BitLen()).String()) }))
	}
	netns.Route(t, ns, netns.NodeIP, "0.0.0.0/0")
	netns.Route(t, ns, netns.NodeIP6, "::/0")
	// Without a route the node's own packets meet no rule.
	netns.Route(t, netns.Own{}, netns.OutsideIP, "0.0.0.0/0")
	netns.Route(t, netns.Own{}, netns.OutsideIP6, "::/0")
	l.DNS.Service = dnsIPs
	for _, ip := range labNode {
		l.DNS.Servers = append(l.DNS.Servers, netip.AddrPortFrom(ip, dnsTarget))
	}
	l.serveServices(t, mode)
	return l
}

func addressesOf(p *corev1.Pod) []netip.Addr {
	var out []netip.Addr
	for _, ip := range p.Status.PodIPs {
		out = append(out, netip.MustParseAddr(ip.IP))
	}
	return out
}

// serveServices runs the Service proxy until the test ends, and returns when the kernel has all Services.
func (l *serviceLab) serveServices(t *testing.T, mode string) {
	api := l.api()
	objects := append(l.services(), dnsObjects()...)
	objects = append(objects, &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.43.0.0/16", "fd43::/112"}},
	})
	for _, o := range objects {
		testenv.NoError(t, api.Tracker().Add(o))
	}
	informers := testenv.Must(netinformers.New(netinformers.Options{Client: api, NodeName: l.Node, Services: true}))(t)
	record := filepath.Join(t.TempDir(), "service-proxy")
	ctx, cancel := context.WithCancel(context.Background())
	p, err := proxy.New(ctx, proxy.Options{
		NodeIPs: labNode, Mode: mode, Informers: informers, RecordFile: record,
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd00:42::/32")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("fd43::/112")},
		Logger:       ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true))),
	})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	done := make(chan error, 2) // both ends are read
	go func() { done <- informers.Run(ctx) }()
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		testenv.Check(t, errors.Join(<-done, <-done))
		testenv.Check(t, testenv.Err(nft.RemoveServiceRules(record)))
	})
	testenv.Eventually(t, 2*patience, "Services are served", func() error {
		if h := p.Health(); !h.Synced || h.Err != nil {
			return fmt.Errorf("not yet: %w", h.Err)
		}
		return nil
	})
}

// services are two for each pod, with their endpoints.
func (l *serviceLab) services() []runtime.Object {
	var out []runtime.Object
	for i, p := range l.Pods {
		name := fmt.Sprint("pod", i)
		ports := slices.Clone(offered)
		for k := range ports {
			ports[k].NodePort = nodePort(i, k)
		}
		all := service(p.Namespace, name, addressFor(byClusterIP, i, 0), addressFor(byClusterIP, i, 1), ports)
		all.Spec.Type, all.Spec.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, corev1.ServiceExternalTrafficPolicyCluster
		all.Spec.ExternalIPs = []string{addressFor(byExternalIP, i, 0).String(), addressFor(byExternalIP, i, 1).String()}

		balanced := service(p.Namespace, name+"-lb",
			netip.MustParseAddr(fmt.Sprint("10.43.2.", i+1)), netip.MustParseAddr(fmt.Sprintf("fd43::2:%x", i+1)), slices.Clone(offered))
		balanced.Spec.Type, balanced.Spec.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
		balanced.Spec.HealthCheckNodePort = int32(32000 + i)
		for family := range 2 {
			ip := addressFor(byBalancer, i, family).String()
			balanced.Status.LoadBalancer.Ingress = append(balanced.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
		}
		for _, s := range []*corev1.Service{all, balanced} {
			out = append(out, s)
			for _, ip := range addressesOf(p) {
				out = append(out, services.Slice(s, p.Spec.NodeName, 0, ip.String()))
			}
		}
	}
	return out
}

func nodePort(pod, port int) int32 { return int32(30000 + len(offered)*pod + port) }

func service(namespace, name string, four, six netip.Addr, ports []corev1.ServicePort) *corev1.Service {
	s := services.New(name, []string{four.String(), six.String()}, ports...)
	s.Namespace = namespace
	return s
}

// dnsObjects are the Service of the cluster's DNS, which leads to the node's own.
func dnsObjects() []runtime.Object {
	s := service(dnsNamespace, "kube-dns", dnsIPs[0], dnsIPs[1], []corev1.ServicePort{
		{Name: "dns", Protocol: corev1.ProtocolUDP, Port: dnsPort, TargetPort: intstr.FromInt32(dnsTarget)},
		{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: dnsPort, TargetPort: intstr.FromInt32(dnsTarget)},
	})
	here := corev1.ServiceInternalTrafficPolicyLocal
	s.Spec.InternalTrafficPolicy = &here
	return []runtime.Object{s, services.Slice(s, "n1", 0, labNode[0].String()), services.Slice(s, "n1", 0, labNode[1].String())}
}

// attempt is a connection to an endpoint, and where the client sends it.
type attempt struct {
	connection
	way way
	at  netip.AddrPort
}

// at is where a connection reaches its pod by a Service.
func (l *serviceLab) at(w way, c connection) netip.AddrPort {
	pod := slices.IndexFunc(l.Pods, func(p *corev1.Pod) bool { return slices.Contains(addressesOf(p), c.to) })
	port := slices.IndexFunc(offered, func(p corev1.ServicePort) bool { return p.Protocol == c.proto && p.TargetPort.IntVal == c.port })
	family := map[int]int{4: 0, 6: 1}[familyOf(c.to)]
	if w == byNodePort {
		return netip.AddrPortFrom(labNode[family], uint16(nodePort(pod, port)))
	}
	return netip.AddrPortFrom(addressFor(w, pod, family), uint16(offered[port].Port))
}

// attempt picks one by chance.
func (l *serviceLab) attempt(r *rand.Rand) attempt {
	for {
		to, family := l.Pods[r.IntN(len(l.Pods))], r.IntN(2)
		p := offered[r.IntN(len(offered))]
		var froms []netip.Addr
		for _, ip := range outside {
			if ip.Is4() == (family == 0) {
				froms = append(froms, ip)
			}
		}
		for _, other := range l.Pods {
			froms = append(froms, addressesOf(other)[family])
		}
		a := attempt{connection: connection{froms[r.IntN(len(froms))], addressesOf(to)[family], p.Protocol, p.TargetPort.IntVal}, way: way(r.IntN(int(ways)))}
		otherNode := to.Spec.NodeName != l.Node
		switch {
		case otherNode && a.from == a.to:
			continue // it does not come by here
		case otherNode && a.way == byBalancer && slices.Contains(outside, a.from):
			continue // it is sent to the other node
		}
		a.at = l.at(a.way, a.connection)
		return a
	}
}
