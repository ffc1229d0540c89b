// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"
	netutils "k8s.io/utils/net"

	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

// Reserved are the cluster's own addresses and ports, which no Service may take: otherwise a user who may write
// Services could redirect every node's requests to the API to a pod.
type Reserved struct {
	// Addresses must not be in externalIPs: the virtual address of the API, the cluster DNS. The nodes' and the
	// servers' addresses are known from the API.
	Addresses []netip.Addr
	// Ports are those on which the nodes themselves listen.
	Ports []uint16
	// Tunnel is the UDP port for packets from other nodes, which no Service gets as a node port; 0 for none. It may
	// change: see ReserveTunnel.
	Tunnel uint16
}

// externals filters Services for the back ends: it removes from each Service what that may not have.
type externals struct {
	log      klog.Logger
	reserved Reserved

	mu             sync.Mutex
	nodeAddresses  []netip.Addr            // this node's, as configured
	nodes          map[string][]netip.Addr // by name
	tunnelAt       map[string][]netip.Addr // by name: where packets for its pods arrive, if a node annotates other addresses
	servers        map[string][]netip.Addr // by the EndpointSlice of the Service kubernetes: a machine that is only a server has no Node
	networks       []netip.Prefix          // of pods, and of Services as the API has them
	pods           []netip.Prefix
	filtered       map[types.NamespacedName]filtered
	requestedPorts requestedPorts
	tunnels        map[string]int // by node: the UDP port for packets from other nodes, by the back end in the node's annotation
	senders        map[int]int    // by such a port: how many nodes have it

	host       *hostNetwork                // nil until it was read once
	hostFailed bool                        // it could not be read the last time
	readHost   func() (hostNetwork, error) // readHostNetwork, except in tests
}

// filtered is a Service as received, what is excluded from it, the Service as passed to the back end, and the last log
// message.
type filtered struct {
	received *corev1.Service
	excluded excluded
	passedOn *corev1.Service
	loggedAs string
}

// notifier is the back end's OnServiceUpdate. Both arguments are nil for a Service that it never received.
type notifier func(was, is *corev1.Service)

func newExternals(o Options, log klog.Logger) *externals {
	x := &externals{log: log, reserved: o.Reserved, nodes: map[string][]netip.Addr{}, tunnelAt: map[string][]netip.Addr{},
		servers: map[string][]netip.Addr{}, filtered: map[types.NamespacedName]filtered{},
		requestedPorts: requestedPorts{}, tunnels: map[string]int{}, senders: map[int]int{}}
	x.nodeAddresses = o.NodeIPs
	x.pods = o.ClusterCIDRs
	x.networks = slices.Concat(o.ClusterCIDRs, o.ServiceCIDRs)
	x.readHost = func() (hostNetwork, error) { return readHostNetwork(o.ResolvConf) }
	return x
}

// handleService handles a Service that was added (old is nil), changed or deleted (svc is nil). It calls notify for
// each resulting change before it returns, so that the back end gets changes in the order of events.
func (x *externals) handleService(old, svc *corev1.Service, notify notifier) {
	named := svc
	if named == nil {
		named = old
	}
	key := types.NamespacedName{Namespace: named.Namespace, Name: named.Name}
	x.mu.Lock()
	defer x.mu.Unlock()
	before := x.filtered[key]
	touched := map[types.NamespacedName]bool{}
	x.requestedPorts.update(key, before.received, svc, touched)
	if svc == nil {
		delete(x.filtered, key)
		notify(before.passedOn, nil)
	} else {
		x.filter(key, svc, notify)
	}
	for other := range touched {
		if other != key {
			x.filterAgain(other, notify)
		}
	}
}

// parseIP parses an address as the back ends do: it accepts leading zeros, which old objects have.
func parseIP(text string) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(text))
	return a.Unmap(), ok
}

func (x *externals) filterAgain(key types.NamespacedName, notify notifier) {
	if before, ok := x.filtered[key]; ok {
		x.filter(key, before.received, notify)
	}
}

// change calls f. If f changes what Services are filtered by, it filters all of them again, and calls notify for those
// with another result.
func (x *externals) change(f func() (changed bool), notify notifier) (changed bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if changed = f(); changed {
		for key := range x.filtered {
			x.filterAgain(key, notify)
		}
	}
	return changed
}

// filter removes from a Service what it may not have, and logs that when it has changed. It calls notify if the result
// differs from the last one.
func (x *externals) filter(key types.NamespacedName, svc *corev1.Service, notify notifier) {
	before, now := x.filtered[key], filtered{received: svc}
	var problems []string
	now.excluded.external = x.excludedIPs(svc, &problems)
	now.excluded.ingress = x.excludedIngress(svc, &problems)
	for i, port := range svc.Spec.Ports {
		if port.NodePort == 0 {
			continue
		}
		if why := x.nodePort(svc, port); why != "" {
			problems = append(problems, why)
			now.excluded.nodePorts = append(now.excluded.nodePorts, i)
		}
	}
	if now.loggedAs = strings.Join(problems, "; "); now.loggedAs != "" && now.loggedAs != before.loggedAs {
		x.log.Info("A Service asks for what it may not have, and is served without that: change its spec", "service", klog.KObj(svc),
			"problem", now.loggedAs)
	}
	same := before.received == svc && before.excluded.equal(now.excluded)
	if now.passedOn = before.passedOn; !same {
		now.passedOn = now.excluded.removeFrom(svc)
	}
	if x.filtered[key] = now; !same {
		notify(before.passedOn, now.passedOn)
	}
}

// excluded are the indices, in a Service's lists, of removed external IPs, load balancer addresses and node ports.
type excluded struct{ external, ingress, nodePorts []int }

func (t excluded) equal(u excluded) bool {
	return slices.Equal(t.external, u.external) && slices.Equal(t.ingress, u.ingress) && slices.Equal(t.nodePorts, u.nodePorts)
}

// removeFrom returns the Service without the excluded items. It shares the rest with svc, which may have thousands of
// ports.
func (t excluded) removeFrom(svc *corev1.Service) *corev1.Service {
	if t.equal(excluded{}) {
		return svc
	}
	out := *svc
	out.Spec.ExternalIPs = leaveOut(svc.Spec.ExternalIPs, t.external)
	out.Status.LoadBalancer.Ingress = leaveOut(svc.Status.LoadBalancer.Ingress, t.ingress)
	if len(t.nodePorts) > 0 {
		out.Spec.Ports = slices.Clone(svc.Spec.Ports)
	}
	for _, i := range t.nodePorts {
		out.Spec.Ports[i].NodePort = 0
	}
	return &out
}

// leaveOut returns the elements whose indices are not in places, which is sorted.
func leaveOut[T any](all []T, places []int) (out []T) {
	for i, e := range all {
		if _, found := slices.BinarySearch(places, i); !found {
			out = append(out, e)
		}
	}
	return out
}

// excludedIPs returns the external IPs that no node serves, or not this one. The API server's admission decides which
// Service may have one of the others, and which one owns it where two request it
// (server/apiserver/admissionexternalips.go).
func (x *externals) excludedIPs(svc *corev1.Service, problems *[]string) (out []int) {
	for i, ip := range svc.Spec.ExternalIPs {
		a, ok := parseIP(ip)
		var why string
		switch {
		case !ok:
			why = "is none"
		case x.isMachine(a):
			why = "is a node's or a server's"
		case slices.Contains(x.reserved.Addresses, a):
			why = "is the cluster's own"
		case x.isTunnels(a):
			why = "is where packets for a node's pods come in"
		case x.host == nil:
			why = "cannot be served before this machine's routes and resolvers are known"
		default:
			why = cmp.Or(x.clusterReason(a), x.host.reason(a))
		}
		if why != "" {
			out = append(out, i)
			*problems = append(*problems, fmt.Sprintf("the external IP %s %s", ip, why))
		}
	}
	return out
}

// excludedIngress returns the load balancer addresses that are not served. Nodes' addresses are served, except the
// nodes' own ports. The address of a router that is no node is not: any Service could request it from a pool that
// contains it, and would get what nodes and pods send to the router. A resolver's address is served, since a Service
// may be the resolver that the nodes use. An address for which the status does not list all ports is not served: its
// load balancer has not decided on the others, which may be another Service's. That is not logged, since it happens for
// a moment whenever a Service gets another port.
func (x *externals) excludedIngress(svc *corev1.Service, problems *[]string) (out []int) {
	for i, in := range svc.Status.LoadBalancer.Ingress {
		if !givesAllPorts(in, svc.Spec.Ports) {
			out = append(out, i)
			continue
		}
		a, ok := parseIP(in.IP)
		why := ""
		if ok {
			why = x.clusterReason(a)
			if port := x.reservedPort(svc); port != 0 && (x.isMachine(a) || slices.Contains(x.reserved.Addresses, a.Unmap())) {
				why = fmt.Sprintf("is the cluster's own, and so is its port %d", port)
			}
			if x.host != nil && x.host.gateways[a] && !x.isMachine(a) {
				why = isGateway
			}
		}
		if why != "" {
			out = append(out, i)
			*problems = append(*problems, fmt.Sprintf("the load balancer address %s %s", in.IP, why))
		}
	}
	return out
}

// givesAllPorts reports whether a status lists all of a Service's ports at an address. It does, too, where it lists
// none: the address is a pool's, or another load balancer's. A port with an error does not count.
func givesAllPorts(in corev1.LoadBalancerIngress, ports []corev1.ServicePort) bool {
	if len(in.Ports) == 0 || in.IP == "" || !proxyutil.IsVIPMode(in) {
		return true
	}
	given := map[loadbalancer.Port]bool{}
	for _, p := range in.Ports {
		given[loadbalancer.PortOf(p.Protocol, p.Port)] = p.Error == nil
	}
	return !slices.ContainsFunc(ports, func(p corev1.ServicePort) bool { return !given[loadbalancer.PortOf(p.Protocol, p.Port)] })
}

func (x *externals) reservedPort(svc *corev1.Service) uint16 {
	for _, p := range svc.Spec.Ports {
		if slices.Contains(x.reserved.Ports, uint16(p.Port)) {
			return uint16(p.Port)
		}
	}
	return 0
}

// broadcast reaches every machine of a link. A Service with this address would get what others of the link send to a
// node's own DHCP server.
var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func (x *externals) clusterReason(a netip.Addr) string {
	a = a.Unmap()
	for _, p := range x.networks {
		if p.Contains(a) {
			return "lies in " + p.String() + ", a network of pods or of Services"
		}
	}
	if a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() || a == broadcast {
		return "is no address that others could reach"
	}
	return ""
}

// services forwards a change of a Service to the back end.
func (p *Proxy) services(old, svc *corev1.Service) {
	p.o.externals.handleService(old, svc, p.backend.OnServiceUpdate)
}

// change calls f. If f changes what Services are filtered by, it filters them again and triggers a sync.
func (p *Proxy) change(f func() (changed bool)) {
	if p.o.externals.change(f, p.backend.OnServiceUpdate) {
		p.trigger()
	}
}

// Reserve replaces the cluster's own addresses of Options.Reserved: the API's virtual address may change.
func (p *Proxy) Reserve(addrs []netip.Addr) {
	p.change(func() bool {
		reserved := &p.o.externals.reserved
		changed := !slices.Equal(reserved.Addresses, addrs)
		reserved.Addresses = slices.Clone(addrs)
		return changed
	})
}

// ReserveTunnel replaces the UDP port for packets from other nodes of Options.Reserved, 0 for none: the cluster may
// change its network back end. The port may be in the range of node ports, and a user who may write Services could
// otherwise get what all pods send to those of other nodes.
func (p *Proxy) ReserveTunnel(port int) {
	p.change(func() bool {
		reserved := &p.o.externals.reserved
		changed := int(reserved.Tunnel) != port
		reserved.Tunnel = uint16(port)
		return changed
	})
}

// nodeTunnel records the UDP port at which a node receives packets of other nodes. The port follows from the back end
// in the annotation of the node. It is 0 if there is none, or the node was deleted. After a change of back end some
// nodes learn of it later than others, and send to the former port until then. A node that is cut off from the API does
// so until it is connected again.
func (p *Proxy) nodeTunnel(node string, port int) {
	p.change(func() bool {
		x := p.o.externals
		was := x.tunnels[node]
		if was == port {
			return false
		}
		delete(x.tunnels, node)
		if port != 0 {
			x.tunnels[node] = port
			x.senders[port]++
		}
		if x.senders[was]--; x.senders[was] <= 0 {
			delete(x.senders, was)
		}
		return port != 0 && x.senders[port] == 1 || was != 0 && x.senders[was] == 0
	})
}

// serviceNetworks records the API's Service CIDRs.
func (p *Proxy) serviceNetworks(cidrs []string) {
	networks := slices.Concat(p.o.externals.pods, convert.Slice(convert.Valid(cidrs, netip.ParsePrefix), netip.Prefix.Masked))
	p.o.externals.change(func() bool {
		p.o.externals.networks = networks
		return true
	}, p.backend.OnServiceUpdate)
}
