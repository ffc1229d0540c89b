// SPDX-License-Identifier: Apache-2.0

package vip

import (
	"encoding/binary"
	"net/netip"
)

const (
	ip6Len       = 40
	protoICMPv6  = 58
	hopLimit     = 255 // no forwarded packet has it (RFC 4861, 7.1)
	typeNS       = 135
	typeNA       = 136
	ndpLen       = 24 // of both messages, without options
	optSourceHW  = 1
	optTargetHW  = 2
	flagSolicit  = 1 << 30
	flagOverride = 1 << 29
)

var allNodes = netip.MustParseAddr("ff02::1")

// ndp is a neighbour solicitation or advertisement (RFC 4861, 4.3 and 4.4).
type ndp struct {
	kind     byte
	from, to netip.Addr
	fromHW   hw // of the frame
	flags    uint32
	target   netip.Addr
	// linkHW is the address in the message's link-layer address option; noHW without one.
	linkHW hw
}

// parseNDP parses a frame. ok is false for other packets and for those that violate the RFC.
func parseNDP(frame []byte) (m ndp, ok bool) {
	if len(frame) < etherLen+ip6Len+ndpLen || binary.BigEndian.Uint16(frame[12:]) != etherIPv6 {
		return ndp{}, false
	}
	header, rest := frame[etherLen:etherLen+ip6Len], frame[etherLen+ip6Len:]
	length := int(binary.BigEndian.Uint16(header[4:]))
	if header[0]>>4 != 6 || header[6] != protoICMPv6 || header[7] != hopLimit || length < ndpLen || length > len(rest) {
		return ndp{}, false
	}
	body := rest[:length]
	m = ndp{
		kind: body[0], from: netip.AddrFrom16([16]byte(header[8:24])), to: netip.AddrFrom16([16]byte(header[24:40])),
		flags: binary.BigEndian.Uint32(body[4:]), target: netip.AddrFrom16([16]byte(body[8:24])),
	}
	copy(m.fromHW[:], frame[6:])
	if (m.kind != typeNS && m.kind != typeNA) || body[1] != 0 || m.target.IsMulticast() ||
		checksum(header[8:24], header[24:40], body) != 0 {
		return ndp{}, false
	}
	want := byte(optSourceHW)
	if m.kind == typeNA {
		want = optTargetHW
	}
	for options := body[ndpLen:]; len(options) > 0; {
		if len(options) < 2 || options[1] == 0 || int(options[1])*8 > len(options) {
			return ndp{}, false
		}
		if options[0] == want && options[1] == 1 {
			copy(m.linkHW[:], options[2:])
		}
		options = options[int(options[1])*8:]
	}
	return m, true
}

// frame encodes the message for one receiver.
func (m ndp) frame(to hw) []byte {
	body := []byte{m.kind, 0, 0, 0}
	body = binary.BigEndian.AppendUint32(body, m.flags)
	body = append(body, m.target.AsSlice()...)
	if m.linkHW != noHW {
		option := byte(optSourceHW)
		if m.kind == typeNA {
			option = optTargetHW
		}
		body = append(append(body, option, 1), m.linkHW[:]...)
	}
	binary.BigEndian.PutUint16(body[2:], checksum(m.from.AsSlice(), m.to.AsSlice(), body))
	b := ether(to, m.fromHW, etherIPv6)
	b = append(b, 6<<4, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = append(b, protoICMPv6, hopLimit)
	b = append(b, m.from.AsSlice()...)
	b = append(b, m.to.AsSlice()...)
	return append(b, body...)
}

// checksum computes ICMPv6's checksum (RFC 4443, 2.3). It is 0 over a message with a correct checksum.
func checksum(from, to, body []byte) uint16 {
	sum := uint32(len(body)) + protoICMPv6
	for _, part := range [][]byte{from, to, body} {
		for i := 0; i+1 < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
		if len(part)%2 == 1 {
			sum += uint32(part[len(part)-1]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// solicited returns the solicited-node group of an address (RFC 4291, 2.7.1).
func solicited(address netip.Addr) netip.Addr {
	a, out := address.As16(), [16]byte{0xff, 0x02, 11: 1, 12: 0xff}
	copy(out[13:], a[13:])
	return netip.AddrFrom16(out)
}

// groupHW returns the Ethernet address of an IPv6 group (RFC 2464, 7).
func groupHW(group netip.Addr) hw {
	a := group.As16()
	return hw{0x33, 0x33, a[12], a[13], a[14], a[15]}
}
