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

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
)

// Reserved are addresses and ports of the cluster's own, which no Service may take: a user who may write Services could
// otherwise have every node's requests to the API sent to a pod.
type Reserved struct {
	// Addresses may be in no externalIPs: the virtual address of the API, the cluster DNS. The nodes' and the
	// servers' are known from the API.
	Addresses []netip.Addr
	// Ports are those on which the nodes themselves listen.
	Ports []uint16
	// Tunnel is the port at which other nodes' packets come by UDP, which no Service has as a node port; 0 for none. It
	// may change: see ReserveTunnel.
	Tunnel uint16
}

// externals stands in front of the back ends: of each Service it passes on what that may have.
type externals struct {
	log      klog.Logger
	reserved Reserved

	mu             sync.Mutex
	own            []netip.Addr            // this node's, as configured
	nodes          map[string][]netip.Addr // by name
	tunnelAt       map[string][]netip.Addr // by name, where a node says that packets for its pods come in, if that is elsewhere
	servers        map[string][]netip.Addr // by the EndpointSlice of the Service kubernetes: a machine that is a server alone has no Node
	networks       []netip.Prefix          // of pods, and of Services as the API has them
	pods           []netip.Prefix
	filtered       map[types.NamespacedName]filtered
	requestedPorts requestedPorts
	tunnels        map[string]int // by node: where packets from other nodes come in by UDP with the back end that it says it goes by
	senders        map[int]int    // by such a port: how many nodes say so

	host       *hostNetwork                // nil until it has been read once
	hostFailed bool                        // it could not be read the last time
	readHost   func() (hostNetwork, error) // readHostNetwork, but for tests
}

// filtered is a Service as it came, what it may not have of that, what the back end has of it, and the last log
// message.
type filtered struct {
	received *corev1.Service
	excluded excluded
	went     *corev1.Service
	said     string
}

// notifier tells the back end what has become of one Service; was or is may be nil.
type notifier func(was, is *corev1.Service)

func newExternals(o Options, log klog.Logger) *externals {
	x := &externals{log: log, reserved: o.Reserved, nodes: map[string][]netip.Addr{}, tunnelAt: map[string][]netip.Addr{},
		servers: map[string][]netip.Addr{}, filtered: map[types.NamespacedName]filtered{},
		requestedPorts: requestedPorts{}, tunnels: map[string]int{}, senders: map[int]int{}}
	x.own = o.NodeIPs
	x.pods = o.ClusterCIDRs
	x.networks = slices.Concat(o.ClusterCIDRs, o.ServiceCIDRs)
	x.readHost = func() (hostNetwork, error) { return readHostNetwork(o.ResolvConf) }
	return x
}

// pass notes a Service that came (old is nil), changed or went (svc is nil), and tells what the back end is to hear of
// it: in the order of events, so that it does so before it returns.
func (x *externals) pass(old, svc *corev1.Service, notify notifier) {
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
		notify(before.went, nil)
	} else {
		x.filter(key, svc, notify)
	}
	for other := range touched {
		if other != key {
			x.filterAgain(other, notify)
		}
	}
}

// parseIP reads an address as the back ends do: with leading zeros, too, which objects from before have.
func parseIP(text string) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(text))
	return a.Unmap(), ok
}

func (x *externals) filterAgain(key types.NamespacedName, notify notifier) {
	if before, ok := x.filtered[key]; ok {
		x.filter(key, before.received, notify)
	}
}

// change filters all Services once more, if f changes what they are filtered by, and hands those that look different
// now to notify.
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

// filter takes away from a Service what it may not have, says so once, and tells the back end if that is something else
// than before.
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
	if now.said = strings.Join(problems, "; "); now.said != "" && now.said != before.said {
		x.log.Info("A Service asks for what it may not have, and is served without that: change its spec", "service", klog.KObj(svc),
			"problem", now.said)
	}
	same := before.received == svc && before.excluded.equal(now.excluded)
	if now.went = before.went; !same {
		now.went = now.excluded.from(svc)
	}
	if x.filtered[key] = now; !same {
		notify(before.went, now.went)
	}
}

// excluded are the indices, in a Service's lists, of external IPs, load balancer addresses and node ports that are
// taken away from it.
type excluded struct{ external, ingress, nodePorts []int }

func (t excluded) equal(u excluded) bool {
	return slices.Equal(t.external, u.external) && slices.Equal(t.ingress, u.ingress) && slices.Equal(t.nodePorts, u.nodePorts)
}

// from is the Service without these. The rest is shared with it: it may have thousands of ports.
func (t excluded) from(svc *corev1.Service) *corev1.Service {
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

// leaveOut leaves out what is at the indices, which are in order.
func leaveOut[T any](all []T, places []int) (out []T) {
	for i, e := range all {
		if _, found := slices.BinarySearch(places, i); !found {
			out = append(out, e)
		}
	}
	return out
}

// excludedIPs are the external IPs that no node serves, or not this one. Which Service may have one of the others, and
// whose it is where two request it, the API server's admission decides (server/apiserver/serviceexternalips.go).
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

// excludedIngress lets load balancer addresses be nodes', but for the nodes' own ports. It lets none be a router's that
// is no node: from a pool made around the router any Service could request that address, and would get what nodes and
// pods send to the router. A resolver's is let be, since a Service may be the resolver that the nodes ask. An address
// at which the status does not give all ports is not served: its load balancer has not decided on the others, which may
// be another Service's. Of that nothing is logged, since it is so for a moment whenever a Service gets another port.
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

// givesAllPorts says whether a status gives all of a Service's ports at an address. So it is where it lists none: an
// address of a pool, or of another load balancer. A port with an error is not given.
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

// broadcast is every machine of a link. A Service that had it would have what others of the link ask a node's own DHCP
// server.
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

// services passes a change of a Service on to the back end.
func (p *Proxy) services(old, svc *corev1.Service) { p.o.externals.pass(old, svc, p.notifyBackend) }

// change is for what makes a new attempt to write the kernel's rules necessary.
func (p *Proxy) change(f func() (changed bool)) {
	if p.o.externals.change(f, p.notifyBackend) {
		p.trigger()
	}
}

// notifyBackend tells the back end of a Service that came (was is nil), changed or went (is is nil).
func (p *Proxy) notifyBackend(was, is *corev1.Service) {
	switch {
	case was == nil && is == nil:
	case was == nil:
		p.backend.OnServiceAdd(is)
	case is == nil:
		p.backend.OnServiceDelete(was)
	default:
		p.backend.OnServiceUpdate(was, is)
	}
}

// Reserve notes the cluster's own addresses, in place of those of Options.Reserved: the API's virtual address may
// change.
func (p *Proxy) Reserve(addrs []netip.Addr) {
	p.change(func() bool {
		reserved := &p.o.externals.reserved
		changed := !slices.Equal(reserved.Addresses, addrs)
		reserved.Addresses = slices.Clone(addrs)
		return changed
	})
}

// ReserveTunnel notes the port at which other nodes' packets come by UDP, 0 for none, in place of that of
// Options.Reserved: the cluster may change its network back end. The range of node ports may have it, and who may write
// Services would get what all pods send to those of other nodes.
func (p *Proxy) ReserveTunnel(port int) {
	p.change(func() bool {
		reserved := &p.o.externals.reserved
		changed := int(reserved.Tunnel) != port
		reserved.Tunnel = uint16(port)
		return changed
	})
}

// nodeTunnel notes at which port a node's packets come by UDP with the back end that it says it goes by, 0 for none or
// when it is gone. After a change of back end some nodes hear of it later than others, and go on sending as before: one
// that is cut off from the API does so until it is not.
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

// serviceNetworks notes the API's Service CIDRs.
func (p *Proxy) serviceNetworks(cidrs []string) {
	networks := slices.Clone(p.o.externals.pods)
	for _, c := range cidrs {
		if prefix, err := netip.ParsePrefix(c); err == nil {
			networks = append(networks, prefix.Masked())
		}
	}
	p.o.externals.change(func() bool {
		p.o.externals.networks = networks
		return true
	}, p.notifyBackend)
}
