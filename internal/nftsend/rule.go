// SPDX-License-Identifier: Apache-2.0

package nftsend

import (
	"encoding/binary"
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
//	mark set mark or 0xNUMBER
//	goto CHAIN
//
// which may have a comment.
func (b *batch) rule(chain string, l *words) bool {
	var does []expr.Any
	ok := false
	switch {
	case l.take("meta", "l4proto"):
		does, ok = b.dnat(l)
	case l.take("mark", "set", "mark", "or"):
		does, ok = mark(l.next())
	case l.take("goto"):
		to := l.next()
		does, ok = []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: to}}, chainName(to)
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
	family, portAt := "ip", uint32(unix.NFT_REG32_01) // the registers behind the address
	if b.table.Family == nfttable.IPv6 {
		family, portAt = "ip6", unix.NFT_REG_2
	}
	if !l.take(family, "addr", ".", "port", "to", "numgen", "random", "mod") {
		return nil, false
	}
	number, ok := decimal(l.next(), 32)
	if !ok || !l.take("map", "{") {
		return nil, false
	}
	elements, n, ok := b.endpoints(l)
	if !ok || !l.take("}") {
		return nil, false
	}
	name, id := b.newMap(elements, n)
	return append(does,
		&expr.Numgen{Register: 1, Modulus: uint32(number), Type: unix.NFT_NG_RANDOM},
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: name, SetID: id},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(b.table.Family), RegAddrMin: 1, RegProtoMin: portAt},
	), true
}

// endpoints are the elements of a map from a number to an address and port.
func (b *batch) endpoints(l *words) (list *nl.RtAttr, n int, ok bool) {
	list = nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	for first := true; first || l.take(","); first = false {
		key, ok := decimal(l.next(), 32)
		if !ok || !l.take(":") {
			return nil, 0, false
		}
		to, ok := b.value(IPAddr, l.next())
		if !ok || !l.take(".") {
			return nil, 0, false
		}
		port, ok := b.value(InetService, l.next())
		if n++; !ok || n > maxElements {
			return nil, 0, false
		}
		list.AddChild(nested(unix.NFTA_LIST_ELEM,
			nested(unix.NFTA_SET_ELEM_KEY, nl.NewRtAttr(unix.NFTA_DATA_VALUE, binary.NativeEndian.AppendUint32(nil, uint32(key)))),
			nested(unix.NFTA_SET_ELEM_DATA, nl.NewRtAttr(unix.NFTA_DATA_VALUE, append(to, port...)))))
	}
	return list, n, true
}

// What nft calls its types, and says about a map beside it so that it can list it.
const (
	typeInteger, typeIPv4Addr, typeIPv6Addr, typeInetService = 4, 7, 8, 13
	typeBits                                                 = 6 // of each part of a concatenation

	keyByteOrder, dataByteOrder, dataInterval = userdata.NFTNL_UDATA_SET_KEYBYTEORDER, userdata.NFTNL_UDATA_SET_DATABYTEORDER, userdata.NFTNL_UDATA_SET_DATA_INTERVAL
	hostByteOrder                             = 1
)

// newMap takes in a map without a name, which the rule that follows has in it. github.com/google/nftables could, but says that its keys are big-endian, and nft would list them so.
func (b *batch) newMap(elements *nl.RtAttr, n int) (template string, id uint32) {
	b.maps++
	template, id = "__map%d", b.maps
	addrType, size := uint32(typeIPv4Addr), uint32(4+4)
	if b.table.Family == nfttable.IPv6 {
		addrType, size = typeIPv6Addr, 16+4
	}
	said := userdata.AppendUint32(nil, keyByteOrder, hostByteOrder)
	said = userdata.AppendUint32(said, dataByteOrder, 0)
	said = userdata.AppendUint32(said, dataInterval, 0)
	b.add(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE,
		str(unix.NFTA_SET_NAME, template),
		number(unix.NFTA_SET_FLAGS, unix.NFT_SET_ANONYMOUS|unix.NFT_SET_CONSTANT|unix.NFT_SET_MAP),
		number(unix.NFTA_SET_KEY_TYPE, typeInteger), number(unix.NFTA_SET_KEY_LEN, 4),
		number(unix.NFTA_SET_DATA_TYPE, addrType<<typeBits|typeInetService), number(unix.NFTA_SET_DATA_LEN, size),
		number(unix.NFTA_SET_ID, id),
		nested(unix.NFTA_SET_DESC, number(unix.NFTA_SET_DESC_SIZE, uint32(n))),
		nl.NewRtAttr(unix.NFTA_SET_USERDATA, said))
	b.add(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, str(unix.NFTA_SET_ELEM_LIST_SET, template), number(unix.NFTA_SET_ELEM_LIST_SET_ID, id), elements)
	return template, id
}
