// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// The host's side of the pod network is a set of objects: desiredHost computes the desired ones, kernel.observe reads
// the existing ones, difference compares the two, and kernel.ensure and kernel.remove apply the difference. desiredHost
// and difference are pure.
//
// These objects are ours, and are pruned when they are not desired: devices named vethcor*, ifbcor* and coracle-*, and
// the bridge coracle0; on these devices, shapers and redirections to one another, addresses, permanent neighbours and
// forwarding entries; and routes of the main table with our protocol number, on any device. Sysctls belong to the host:
// they are set where needed and never reset. The same holds for checksums by software, which an administrator may have
// chosen for a device for which we know no reason.

// object is one object in the kernel. Objects are compared with ==.
type object interface {
	// id is unique in the kernel: a desired object replaces the object with the same id.
	id() string
	// String returns the id and all wanted properties.
	fmt.Stringer
}

// A lenientObject does not need the object in the kernel to be equal to it.
type lenientObject interface {
	// satisfiedBy reports whether the object in the kernel with this id has the wanted properties.
	satisfiedBy(have object) bool
}

// satisfies reports whether the object in the kernel with the id of the wanted one has its properties.
func satisfies(have, want object) bool {
	if w, ok := want.(lenientObject); ok {
		return w.satisfiedBy(have)
	}
	return have == want
}

// link is a network device. One of kind veth is made together with its pod's end, never separately.
type link struct {
	name, kind string
	mtu        int // 0: any
	up         bool
	vxlan      vxlanLink // for kind vxlan
}

// vxlanLink has the properties of a device of kind vxlan that cannot be changed, and its link address, which can.
type vxlanLink struct {
	vni, port int
	local     netip.Addr
	mac       string
}

func (v vxlanLink) String() string {
	return fmt.Sprintf(" id %d dstport %d local %s address %s", v.vni, v.port, v.local, v.mac)
}

func (l link) id() string { return "link " + l.name }

func (l link) String() string {
	s := l.id() + " " + l.kind
	if l.mtu > 0 {
		s += fmt.Sprint(" mtu ", l.mtu)
	}
	if l.up {
		s += " up"
	}
	if l.kind == kindVXLAN {
		s += l.vxlan.String()
	}
	return s
}

func (l link) satisfiedBy(have object) bool {
	h, ok := have.(link)
	return ok && h.kind == l.kind && h.vxlan == l.vxlan && (l.mtu == 0 || l.mtu == h.mtu) && (h.up || !l.up)
}

// address is a single address of the host on a device of ours.
type address struct {
	device string
	ip     netip.Addr
}

func (a address) id() string     { return "address " + a.ip.String() + " dev " + a.device }
func (a address) String() string { return a.id() }

// route leads to a device. src is the source address of the host's packets. If it is invalid the kernel chooses one.
type route struct {
	dst    netip.Prefix
	device string
	src    netip.Addr
	// via is the next node; invalid for none. onlink means that via needs no route that leads to it.
	via    netip.Addr
	onlink bool
	// mtu is the largest packet that passes unfragmented, where the device takes larger ones; 0 otherwise.
	mtu int
}

func (r route) id() string { return "route " + r.dst.String() }

func (r route) String() string {
	s := r.id()
	if r.via.IsValid() {
		s += " via " + r.via.String()
	}
	s += " dev " + r.device
	if r.onlink {
		s += " onlink"
	}
	if r.mtu > 0 {
		s += fmt.Sprint(" mtu ", r.mtu)
	}
	if r.src.IsValid() {
		s += " src " + r.src.String()
	}
	return s
}

// neighbour is a permanent entry, so that no broadcast is ever needed.
type neighbour struct {
	device string
	ip     netip.Addr
	mac    string
}

func (n neighbour) id() string     { return "neighbour " + n.ip.String() + " dev " + n.device }
func (n neighbour) String() string { return n.id() + " lladdr " + n.mac }

// forward is an entry of a tunnel's forwarding database: frames to mac go to the node at dst.
type forward struct {
	device, mac string
	dst         netip.Addr
}

func (f forward) id() string     { return "fdb " + f.mac + " dev " + f.device }
func (f forward) String() string { return f.id() + " dst " + f.dst.String() }

// checksums makes the processor compute the checksums of what a device sends.
type checksums struct{ device string }

func (c checksums) id() string     { return "checksums dev " + c.device }
func (c checksums) String() string { return c.id() + " by software" }

// sysctl is a kernel parameter. Its name is its path below /proc/sys.
type sysctl struct{ name, value string }

func (s sysctl) id() string     { return "sysctl " + s.name }
func (s sysctl) String() string { return s.id() + " " + s.value }

// desiredObject is an object with the pod or the peer that it is for. Both are empty for an object of the node itself.
type desiredObject struct {
	object
	pod  *attachment
	peer string
}

// hostInput is the whole input for computing the host's side.
type hostInput struct {
	bridge       string
	mtu          int
	podCIDRs     []netip.Prefix
	serviceCIDRs []netip.Prefix
	// advertised are the host's own devices that accept router advertisements while the host does not forward.
	advertised []string
	pods       []*attachment
	// paths are the objects that lead to the pods of other nodes.
	paths []desiredObject
}

// desiredHost computes the host's side, in the order in which its objects have to be made. It is pure.
//
// The bridge has the node's addresses in the pod network, one per CIDR. It has no ports. It is a bridge because every
// kernel has bridges, and not every one has dummy devices. Routes of the Service CIDRs point at it: the kernel rejects
// an address without a route before Service rules see the packet, as it would for processes of a host without a default
// route.
func desiredHost(in hostInput) []desiredObject {
	var out []desiredObject
	node := func(o object) { out = append(out, desiredObject{object: o}) }
	for _, s := range forwarding(in) {
		node(s)
	}
	node(link{name: in.bridge, kind: kindBridge, mtu: in.mtu, up: true})
	for _, c := range in.podCIDRs {
		node(address{in.bridge, gateway(c)})
	}
	for _, svc := range in.serviceCIDRs {
		if c, ok := sameFamily(in.podCIDRs, svc.Addr()); ok {
			node(route{dst: svc.Masked(), device: in.bridge, src: gateway(c)})
		}
	}
	for _, r := range in.pods {
		for _, o := range desiredPod(r, in.podCIDRs, in.mtu) {
			out = append(out, desiredObject{object: o, pod: r})
		}
	}
	return append(out, in.paths...)
}

// forwarding returns the sysctls with which the host routes for its pods. A host that forwards IPv6 ignores router
// advertisements, and so loses its own default route, unless accept_ra is 2.
func forwarding(in hostInput) []sysctl {
	var out []sysctl
	if _, ok := sameFamily(in.podCIDRs, netip.IPv4Unspecified()); ok {
		out = append(out, sysctl{"net/ipv4/ip_forward", "1"})
	}
	if _, ok := sameFamily(in.podCIDRs, netip.IPv6Unspecified()); ok {
		for _, device := range in.advertised {
			out = append(out, sysctl{"net/ipv6/conf/" + device + "/accept_ra", "2"})
		}
		out = append(out, sysctl{"net/ipv6/conf/all/forwarding", "1"})
	}
	return out
}

// desiredPod computes the host's side of one pod: its device, a neighbour and a route for each address, and the limits
// of its bandwidth. The node sends to its pods from its own address in the pod network.
func desiredPod(r *attachment, cidrs []netip.Prefix, mtu int) []object {
	out := []object{link{name: r.HostDevice, kind: kindVeth, mtu: mtu, up: true}}
	if usesLoopback(r) {
		out = append(out, sysctl{"net/ipv4/conf/" + r.HostDevice + "/route_localnet", "1"})
	}
	// The host must not use a pod as a router: the pod's advertisements would give the host addresses and a default
	// route. A pod without IPv6 addresses could send them, too.
	out = append(out, sysctl{"net/ipv6/conf/" + r.HostDevice + "/accept_ra", "0"})
	for _, ip := range r.IPs {
		way := route{dst: netip.PrefixFrom(ip, ip.BitLen()), device: r.HostDevice}
		if c, ok := sameFamily(cidrs, ip); ok {
			way.src = gateway(c)
		}
		out = append(out, neighbour{r.HostDevice, ip, r.MAC}, way)
	}
	return append(out, desiredBandwidth(r, mtu)...)
}

// sameFamily returns the first of the networks that has a's address family.
func sameFamily(cidrs []netip.Prefix, a netip.Addr) (netip.Prefix, bool) {
	i := slices.IndexFunc(cidrs, func(c netip.Prefix) bool { return c.Addr().Is4() == a.Is4() })
	if i < 0 {
		return netip.Prefix{}, false
	}
	return cidrs[i], true
}

// difference returns what has to be made or changed, in order, and what has to be removed after that. It is pure.
func difference(want []desiredObject, have map[string]object) (ensure []desiredObject, remove []object) {
	keep := map[string]bool{}
	for _, w := range want {
		keep[w.id()] = true
		if !satisfies(have[w.id()], w.object) {
			ensure = append(ensure, w)
		}
	}
	for id, h := range have {
		if _, stays := h.(checksums); !keep[id] && !stays {
			remove = append(remove, h)
		}
	}
	// Routes are removed before the addresses that they name, and all objects before their devices.
	slices.SortFunc(remove, func(a, b object) int {
		return cmp.Or(cmp.Compare(removeRank(a), removeRank(b)), strings.Compare(a.id(), b.id()))
	})
	return ensure, remove
}

func removeRank(o object) int {
	switch o.(type) {
	case route, blackhole:
		return 0
	case neighbour, forward, checksums, wgPeer, wgIdentity:
		return 1
	case address, redirect, shaper:
		return 2
	}
	return 3
}
