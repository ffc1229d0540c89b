// SPDX-License-Identifier: Apache-2.0

package vip

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

// hw is an Ethernet address.
type hw [6]byte

var (
	broadcast = hw{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	noHW      = hw{}
)

// single reports whether the address belongs to one interface: it is neither a group address nor zero.
func (h hw) single() bool { return h[0]&1 == 0 && h != noHW }

const (
	etherLen    = 14
	etherARP    = 0x0806
	etherIPv6   = 0x86dd
	arpLen      = etherLen + 28
	minFrame    = 60 // shorter frames are padded with zeros
	opRequest   = 1
	opReply     = 2
	arpEthernet = 1
	arpIPv4     = 0x0800
)

// arpHeader is the beginning of an ARP packet for Ethernet and IPv4 (RFC 826).
var arpHeader = []byte{0, arpEthernet, arpIPv4 >> 8, arpIPv4 & 0xff, 6, 4}

// arp has the fields of an ARP request or reply.
type arp struct {
	op                 uint16
	senderHW, targetHW hw
	sender, target     netip.Addr
}

// parseARP parses a frame. ok is false for what is no ARP packet for Ethernet and IPv4.
func parseARP(frame []byte) (p arp, ok bool) {
	if len(frame) < arpLen || binary.BigEndian.Uint16(frame[12:]) != etherARP || !bytes.Equal(frame[14:20], arpHeader) {
		return arp{}, false
	}
	p.op = binary.BigEndian.Uint16(frame[20:])
	copy(p.senderHW[:], frame[22:])
	copy(p.targetHW[:], frame[32:])
	p.sender = netip.AddrFrom4([4]byte(frame[28:32]))
	p.target = netip.AddrFrom4([4]byte(frame[38:42]))
	return p, p.op == opRequest || p.op == opReply
}

// frame encodes the packet for one receiver.
func (p arp) frame(to hw) []byte {
	b := ether(to, p.senderHW, etherARP)
	b = append(b, arpHeader...)
	b = binary.BigEndian.AppendUint16(b, p.op)
	b = append(b, p.senderHW[:]...)
	b = append(b, p.sender.AsSlice()...)
	b = append(b, p.targetHW[:]...)
	b = append(b, p.target.AsSlice()...)
	return append(b, make([]byte, minFrame-len(b))...)
}

func ether(to, from hw, protocol uint16) []byte {
	b := make([]byte, 0, 128)
	b = append(b, to[:]...)
	b = append(b, from[:]...)
	return binary.BigEndian.AppendUint16(b, protocol)
}
