// SPDX-License-Identifier: Apache-2.0

package vip

import "net/netip"

// neighbour computes the reaction to frames that concern one address. It sends nothing itself.
type neighbour struct {
	address netip.Addr
	own     hw
	// from is an address of the interface, the source of IPv6 messages.
	from netip.Addr
}

// heard is how a neighbour reacts to a frame.
type heard struct {
	// answer is the frame to reply with, nil if no reply is due.
	answer []byte
	// conflicting is another interface that uses the address, or is about to. It is noHW if the frame does not show
	// one.
	conflicting hw
}

func (n neighbour) hear(frame []byte) heard {
	if n.address.Is4() {
		if p, ok := parseARP(frame); ok {
			return n.hearARP(p)
		}
	} else if m, ok := parseNDP(frame); ok {
		return n.hearNDP(m)
	}
	return heard{}
}

func (n neighbour) hearARP(p arp) (h heard) {
	if p.senderHW == n.own || !p.senderHW.single() {
		return h
	}
	if p.sender == n.address {
		h.conflicting = p.senderHW
		return h // not answered: it would take a reply for a conflict of its own
	}
	if p.op == opRequest && p.target == n.address {
		h.answer = arp{op: opReply, senderHW: n.own, sender: n.address, targetHW: p.senderHW, target: p.sender}.frame(p.senderHW)
	}
	return h
}

func (n neighbour) hearNDP(m ndp) (h heard) {
	if m.target != n.address || m.fromHW == n.own || m.linkHW == n.own || !m.fromHW.single() {
		return h
	}
	if m.kind == typeNA {
		h.conflicting = m.fromHW
		if m.linkHW.single() {
			h.conflicting = m.linkHW
		}
		return h
	}
	answer := ndp{kind: typeNA, from: n.from, fromHW: n.own, target: n.address, linkHW: n.own, flags: flagOverride}
	if m.from.IsUnspecified() { // it checks whether the address is unused (RFC 4862, 5.4.3)
		answer.to = allNodes
		h.answer = answer.frame(groupHW(allNodes))
		return h
	}
	to := m.fromHW
	if m.linkHW.single() {
		to = m.linkHW
	}
	answer.to, answer.flags = m.from, flagOverride|flagSolicit
	h.answer = answer.frame(to)
	return h
}

// announcements returns the frames that announce the address on the link. For IPv4 both forms are needed: some systems
// accept only the one, or only the other.
func (n neighbour) announcements() [][]byte {
	if n.address.Is4() {
		request := arp{op: opRequest, senderHW: n.own, sender: n.address, target: n.address}
		reply := arp{op: opReply, senderHW: n.own, sender: n.address, targetHW: n.own, target: n.address}
		return [][]byte{request.frame(broadcast), reply.frame(broadcast)}
	}
	m := ndp{kind: typeNA, from: n.from, to: allNodes, fromHW: n.own, target: n.address, linkHW: n.own, flags: flagOverride}
	return [][]byte{m.frame(groupHW(allNodes))}
}

// probe returns a request for the address that changes no machine's table (RFC 5227, 2.1.1; RFC 4862, 5.4.2).
func (n neighbour) probe() []byte {
	if n.address.Is4() {
		return arp{op: opRequest, senderHW: n.own, sender: netip.IPv4Unspecified(), target: n.address}.frame(broadcast)
	}
	group := solicited(n.address)
	return ndp{kind: typeNS, from: netip.IPv6Unspecified(), to: group, fromHW: n.own, target: n.address}.frame(groupHW(group))
}
