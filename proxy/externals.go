// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	netutils "k8s.io/utils/net"

	"github.com/coracle-k8s/coracle/internal/lbports"
)

// Reserved are addresses and ports of the cluster's own, which no Service may take: whoever may write Services could
// otherwise have every node's requests to the API sent to a pod.
type Reserved struct {
	// Addresses may be in nobody's externalIPs: the virtual address of the API, the cluster DNS. The nodes' and the servers' are known from the API.
	Addresses []netip.Addr
	// Ports are those on which the nodes themselves listen.
	Ports []uint16
}

// externals stands in front of the back ends: of each Service it passes on what that may have.
type externals struct {
	log      klog.Logger
	reserved Reserved

	mu       sync.Mutex
	own      []netip.Addr            // this node's, as configured
	nodes    map[string][]netip.Addr // by name
	servers  map[string][]netip.Addr // by the EndpointSlice of the Service kubernetes: a machine that is a server alone has no Node
	networks []netip.Prefix          // of pods, and of Services as the API has them
	pods     []netip.Prefix
	passed   map[types.NamespacedName]passed
	claims   map[netip.Addr]map[types.NamespacedName]bool // Services that came with an address, by that
	wishes   wishes
}

// passed is a Service as it came, what went to the back end (inParts), and what was said about the difference.
type passed struct {
	came *corev1.Service
	went []*corev1.Service
	said string
}

// teller tells the back end what has become of what went there of one Service.
type teller func(was, is []*corev1.Service)

func newExternals(o Options, log klog.Logger) *externals {
	x := &externals{log: log, reserved: o.Reserved, nodes: map[string][]netip.Addr{}, servers: map[string][]netip.Addr{}, passed: map[types.NamespacedName]passed{},
		claims: map[netip.Addr]map[types.NamespacedName]bool{}, wishes: wishes{}}
	x.own = o.NodeIPs
	x.pods = o.ClusterCIDRs
	x.networks = slices.Concat(o.ClusterCIDRs, o.ServiceCIDRs)
	return x
}

// pass notes a Service that came (old is nil), changed or went (svc is nil), and tells what the back end is to hear of it: in the order of
// events, so that it does so before it returns.
func (x *externals) pass(old, svc *corev1.Service, tell teller) {
	named := svc
	if named == nil {
		named = old
	}
	key := types.NamespacedName{Namespace: named.Namespace, Name: named.Name}
	x.mu.Lock()
	defer x.mu.Unlock()
	before := x.passed[key]
	touched := x.note(key, before.came, svc)
	x.wishes.note(key, before.came, svc, touched)
	if svc == nil {
		delete(x.passed, key)
		tell(before.went, nil)
	} else {
		now := x.judge(svc, before.said)
		x.passed[key] = now
		tell(before.went, now.went)
	}
	for other := range touched {
		if other != key {
			x.judgeAgain(other, tell)
		}
	}
}

// note keeps claims, and returns the Services with an address that this one has come to, or has had.
func (x *externals) note(key types.NamespacedName, was, is *corev1.Service) (touched map[types.NamespacedName]bool) {
	touched = map[types.NamespacedName]bool{}
	if was != nil && is != nil && was.CreationTimestamp.Equal(&is.CreationTimestamp) && reflect.DeepEqual(was.Spec.ExternalIPs, is.Spec.ExternalIPs) &&
		reflect.DeepEqual(was.Spec.Ports, is.Spec.Ports) && reflect.DeepEqual(was.Status.LoadBalancer.Ingress, is.Status.LoadBalancer.Ingress) {
		return touched
	}
	for _, a := range claimed(was) {
		maps.Copy(touched, x.claims[a])
		if delete(x.claims[a], key); len(x.claims[a]) == 0 {
			delete(x.claims, a)
		}
	}
	for _, a := range claimed(is) {
		maps.Copy(touched, x.claims[a])
		if x.claims[a] == nil {
			x.claims[a] = map[types.NamespacedName]bool{}
		}
		x.claims[a][key] = true
	}
	return touched
}

// claimed are the addresses that a Service wants besides its cluster IPs.
func claimed(svc *corev1.Service) []netip.Addr {
	if svc == nil {
		return nil
	}
	return append(externalIPs(svc), ingressIPs(svc)...)
}

func externalIPs(svc *corev1.Service) (out []netip.Addr) {
	for _, ip := range svc.Spec.ExternalIPs {
		if a, ok := parseIP(ip); ok {
			out = append(out, a)
		}
	}
	return out
}

func ingressIPs(svc *corev1.Service) (out []netip.Addr) {
	if svc == nil {
		return nil
	}
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if a, ok := parseIP(in.IP); ok {
			out = append(out, a)
		}
	}
	return out
}

// parseIP reads an address as the back ends do: with leading zeros, too, which objects from before have.
func parseIP(text string) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(text))
	return a.Unmap(), ok
}

func (x *externals) judgeAgain(key types.NamespacedName, tell teller) {
	before, ok := x.passed[key]
	if !ok {
		return
	}
	now := x.judge(before.came, before.said)
	if !reflect.DeepEqual(before.went, now.went) {
		x.passed[key] = now
		tell(before.went, now.went)
	}
}

// again judges all Services once more after change, and hands those that look different now to tell.
func (x *externals) again(change func(), tell teller) {
	x.mu.Lock()
	defer x.mu.Unlock()
	change()
	for key := range x.passed {
		x.judgeAgain(key, tell)
	}
}

// judge takes away from a Service what it may not have, and says so once.
func (x *externals) judge(svc *corev1.Service, said string) passed {
	out, problems := svc, []string(nil)
	edit := func() *corev1.Service {
		if out == svc {
			out = svc.DeepCopy()
		}
		return out
	}
	if allowed := x.allowedIPs(svc, &problems); len(allowed) != len(svc.Spec.ExternalIPs) {
		edit().Spec.ExternalIPs = allowed
	}
	if allowed := x.allowedIngress(svc, &problems); len(allowed) != len(svc.Status.LoadBalancer.Ingress) {
		edit().Status.LoadBalancer.Ingress = allowed
	}
	for i, port := range svc.Spec.Ports {
		if port.NodePort == 0 {
			continue
		}
		if why := x.nodePort(svc, port); why != "" {
			problems = append(problems, why)
			edit().Spec.Ports[i].NodePort = 0
		}
	}
	text := strings.Join(problems, "; ")
	if text != "" && text != said {
		x.log.Info("A Service asks for what it may not have, and is served without that: change its spec", "service", klog.KObj(svc), "problem", text)
	}
	return passed{came: svc, went: inParts(out), said: text}
}

func (x *externals) allowedIPs(svc *corev1.Service, problems *[]string) []string {
	var out []string
	for _, ip := range svc.Spec.ExternalIPs {
		a, ok := parseIP(ip)
		var why string
		switch {
		case !ok:
			why = "is none"
		case x.isMachine(a):
			why = "is a node's or a server's"
		case slices.Contains(x.reserved.Addresses, a):
			why = "is the cluster's own"
		default:
			if why = x.inside(a); why == "" {
				why = x.taken(svc, a)
			}
		}
		if why == "" {
			out = append(out, ip)
			continue
		}
		*problems = append(*problems, fmt.Sprintf("the external IP %s %s", ip, why))
	}
	return out
}

// taken says whose an address is that a Service has among its external IPs: that of another namespace's load balancer, all of whose ports are its own, unless the
// Service's namespace has it too, by a load balancer that gives each some of its ports; or of an older Service with that external IP, for the ports that both have. Who may write Services in one namespace could otherwise take what is sent to another one's.
func (x *externals) taken(svc *corev1.Service, a netip.Addr) string {
	var words []string
	own := slices.Contains(ingressIPs(svc), a)
	for key := range x.claims[a] { // what this one was before does not count
		own = own || key.Namespace == svc.Namespace && key.Name != svc.Name && slices.Contains(ingressIPs(x.passed[key].came), a)
	}
	for key := range x.claims[a] {
		other := x.passed[key].came
		switch {
		case other == nil || key.Namespace == svc.Namespace:
		case slices.Contains(ingressIPs(other), a) && (!own || commonPort(other, svc)): // load balancers of several namespaces may have it, each with its ports
			words = append(words, fmt.Sprintf("is the load balancer address of the Service %s", key))
		case !own && slices.Contains(externalIPs(other), a) && older(other, svc) && commonPort(other, svc):
			words = append(words, fmt.Sprintf("is with the same port that of the Service %s, which is older", key))
		}
	}
	slices.Sort(words)
	return strings.Join(words, ", and ")
}

func older(a, b *corev1.Service) bool {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name)) < 0
}

// commonPort is asked of each two Services with one external IP, and either may have thousands of ports.
func commonPort(a, b *corev1.Service) bool {
	have := make(map[lbports.Port]bool, len(a.Spec.Ports))
	for _, p := range a.Spec.Ports {
		have[lbports.Port{Protocol: p.Protocol, Number: p.Port}] = true
	}
	return slices.ContainsFunc(b.Spec.Ports, func(p corev1.ServicePort) bool { return have[lbports.Port{Protocol: p.Protocol, Number: p.Port}] })
}

// allowedIngress lets load balancer addresses be nodes', but for the nodes' own ports.
func (x *externals) allowedIngress(svc *corev1.Service, problems *[]string) []corev1.LoadBalancerIngress {
	var out []corev1.LoadBalancerIngress
	for _, in := range svc.Status.LoadBalancer.Ingress {
		a, ok := parseIP(in.IP)
		why := ""
		if ok {
			why = x.inside(a)
			if port := x.reservedPort(svc); port != 0 && (x.isMachine(a) || slices.Contains(x.reserved.Addresses, a.Unmap())) {
				why = fmt.Sprintf("is the cluster's own, and so is its port %d", port)
			}
		}
		if why == "" {
			out = append(out, in)
			continue
		}
		*problems = append(*problems, fmt.Sprintf("the load balancer address %s %s", in.IP, why))
	}
	return out
}

func (x *externals) reservedPort(svc *corev1.Service) uint16 {
	for _, p := range svc.Spec.Ports {
		if slices.Contains(x.reserved.Ports, uint16(p.Port)) {
			return uint16(p.Port)
		}
	}
	return 0
}

func (x *externals) inside(a netip.Addr) string {
	a = a.Unmap()
	for _, p := range x.networks {
		if p.Contains(a) {
			return "lies in " + p.String() + ", a network of pods or of Services"
		}
	}
	if a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() {
		return "is no address that others could reach"
	}
	return ""
}

// services passes a change of a Service on to the back end.
func (p *Proxy) services(old, svc *corev1.Service) {
	if p.o.externals == nil {
		p.tell(alone(old), alone(svc))
		return
	}
	p.o.externals.pass(old, svc, p.tell)
}

// alone is a Service without parts.
func alone(svc *corev1.Service) []*corev1.Service {
	if svc == nil {
		return nil
	}
	return []*corev1.Service{svc}
}

// Reserve notes the cluster's own addresses, in place of those of Options.Reserved: the API's virtual address may change.
func (p *Proxy) Reserve(addrs []netip.Addr) {
	x := p.o.externals
	if x == nil {
		return
	}
	x.mu.Lock()
	same := slices.Equal(x.reserved.Addresses, addrs)
	x.mu.Unlock()
	if same {
		return
	}
	x.again(func() { x.reserved.Addresses = slices.Clone(addrs) }, p.tell)
	p.trigger()
}

// serviceNetworks notes the API's Service CIDRs.
func (p *Proxy) serviceNetworks(cidrs []string) {
	x := p.o.externals
	if x == nil {
		return
	}
	networks := slices.Clone(x.pods)
	for _, c := range cidrs {
		if prefix, err := netip.ParsePrefix(c); err == nil {
			networks = append(networks, prefix.Masked())
		}
	}
	x.again(func() { x.networks = networks }, p.tell)
}
