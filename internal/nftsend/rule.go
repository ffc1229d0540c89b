// SPDX-License-Identifier: Apache-2.0

package nftsend

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/nfttable"
)

// rule takes in one of
//
//	meta l4proto PROTOCOL dnat to ADDRESS:PORT
//	meta l4proto PROTOCOL dnat FAMILY addr . port to numgen random mod NUMBER map { NUMBER : ADDRESS . PORT , … }
//	numgen random mod NUMBER vmap { NUMBER : goto CHAIN , … }
//	update @SET { FAMILY saddr }
//	[ FROM ] mark set mark or 0xNUMBER
//	[ FROM ] goto CHAIN
//
// which may have a comment.
func (b *batch) rule(chain string, l *words) bool {
	var does []expr.Any
	var ok bool
	switch {
	case l.take("meta", "l4proto"):
		does, ok = b.dnat(l)
	case l.take("numgen", "random", "mod"):
		does, ok = b.anyChain(l)
	case l.take("update"):
		does, ok = b.remember(l)
	default:
		var then []expr.Any
		if does, ok = b.from(l); ok {
			then, ok = act(l)
			does = append(does, then...)
		}
	}
	if !ok {
		return false
	}
	list := nested(unix.NFTA_RULE_EXPRESSIONS)
	for _, e := range does {
		data, err := expr.Marshal(byte(b.table.Family), e)
		if err != nil {
			return false
		}
		list.AddChild(nl.NewRtAttr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, data))
	}
	attrs := []*nl.RtAttr{str(unix.NFTA_RULE_CHAIN, chain), list}
	comment, ok := l.comment()
	if comment != "" {
		attrs = append(attrs, nl.NewRtAttr(unix.NFTA_RULE_USERDATA, userdata.AppendString(nil, userdata.TypeComment, comment)))
	}
	b.add(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, attrs...)
	return ok
}

// from matches where a packet comes from, if the rule asks for that:
//
//	FAMILY saddr PREFIX
//	FAMILY saddr @SET
//	fib saddr type local
func (b *batch) from(l *words) ([]expr.Any, bool) {
	switch {
	case l.take("fib", "saddr", "type", "local"):
		return []expr.Any{
			&expr.Fib{Register: 1, FlagSADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)},
		}, true
	case l.take(b.family(), "saddr"):
		word := l.next()
		if set, ok := strings.CutPrefix(word, "@"); ok {
			id, known := b.added[set]
			return []expr.Any{b.source(b.addrLen()), &expr.Lookup{SourceRegister: 1, SetName: set, SetID: id}}, known
		}
		return b.inside(word)
	}
	return nil, true
}

// inside matches what comes from a network. nft looks at the bytes in front alone where its mask ends with one.
func (b *batch) inside(word string) ([]expr.Any, bool) {
	p, err := netip.ParsePrefix(word)
	if err != nil || p.Bits() == 0 || p != p.Masked() || p.String() != word || !b.ours(p.Addr()) {
		return nil, false
	}
	addr := p.Addr().AsSlice()
	if whole := p.Bits() / 8; p.Bits()%8 == 0 {
		return []expr.Any{b.source(whole), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addr[:whole]}}, true
	}
	mask := net.CIDRMask(p.Bits(), p.Addr().BitLen())
	return []expr.Any{
		b.source(len(addr)),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(addr)), Mask: mask, Xor: make([]byte, len(addr))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addr},
	}, true
}

// source loads so many bytes of where a packet comes from.
func (b *batch) source(bytes int) *expr.Payload {
	offset := uint32(12)
	if b.table.Family == nfttable.IPv6 {
		offset = 8
	}
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(bytes)}
}

// act is one of
//
//	mark set mark or 0xNUMBER
//	goto CHAIN
func act(l *words) ([]expr.Any, bool) {
	switch {
	case l.take("mark", "set", "mark", "or"):
		return mark(l.next())
	case l.take("goto"):
		to := l.next()
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: to}}, chainName(to)
	}
	return nil, false
}

func mark(word string) ([]expr.Any, bool) {
	digits, ok := strings.CutPrefix(word, "0x")
	bits, err := strconv.ParseUint(digits, 16, 32)
	set := binary.NativeEndian.AppendUint32(nil, uint32(bits))
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, ^uint32(bits)), Xor: set},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}, ok && err == nil
}

// dnat is what follows `meta l4proto`.
func (b *batch) dnat(l *words) ([]expr.Any, bool) {
	protocol, ok := protocols[l.next()]
	if !ok || !l.take("dnat") {
		return nil, false
	}
	does := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
	}
	if l.take("to") {
		word := l.next()
		to, err := netip.ParseAddrPort(word)
		return append(does,
			&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
			&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, to.Port())},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(b.table.Family), RegAddrMin: 1, RegProtoMin: 2, Specified: true},
		), err == nil && b.ours(to.Addr()) && to.String() == word
	}
	portAt := uint32(unix.NFT_REG32_01) // the registers behind the address
	if b.table.Family == nfttable.IPv6 {
		portAt = unix.NFT_REG_2
	}
	if !l.take(b.family(), "addr", ".", "port", "to", "numgen", "random", "mod") {
		return nil, false
	}
	number, ok := decimal(l.next(), 32)
	if !ok || !l.take("map") {
		return nil, false
	}
	elements, n, ok := b.choices(l, func() (*nl.RtAttr, bool) {
		to, ok := b.value(IPAddr, l.next())
		if !ok || !l.take(".") {
			return nil, false
		}
		port, ok := b.value(InetService, l.next())
		return nl.NewRtAttr(unix.NFTA_DATA_VALUE, append(to, port...)), ok
	})
	if !ok {
		return nil, false
	}
	name, id := b.newMap(b.addrType()<<typeBits|typeInetService, b.addrLen()+4, nil, elements, n)
	return append(does,
		&expr.Numgen{Register: 1, Modulus: uint32(number), Type: unix.NFT_NG_RANDOM},
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: name, SetID: id},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(b.table.Family), RegAddrMin: 1, RegProtoMin: portAt},
	), true
}

func (b *batch) family() string {
	if b.table.Family == nfttable.IPv6 {
		return "ip6"
	}
	return "ip"
}

// addrType and addrLen are of an address of the table's family, by nft's number and in bytes.
func (b *batch) addrType() uint32 {
	if b.table.Family == nfttable.IPv6 {
		return typeIPv6Addr
	}
	return typeIPv4Addr
}

func (b *batch) addrLen() int {
	if b.table.Family == nfttable.IPv6 {
		return 16
	}
	return 4
}
