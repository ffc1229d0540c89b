// SPDX-License-Identifier: Apache-2.0

package nftsend

import (
	"encoding/binary"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What nft calls its types, and says about a set beside it so that it can list it.
const (
	typeInteger, typeIPv4Addr, typeIPv6Addr, typeInetService = 4, 7, 8, 13
	typeVerdict                                              = unix.NFT_DATA_VERDICT
	typeBits                                                 = 6 // of each part of a concatenation

	keyByteOrder, dataByteOrder, dataInterval = userdata.NFTNL_UDATA_SET_KEYBYTEORDER, userdata.NFTNL_UDATA_SET_DATABYTEORDER, userdata.NFTNL_UDATA_SET_DATA_INTERVAL
	dataTypeOf                                = userdata.NFTNL_UDATA_SET_DATA_TYPEOF
	hostByteOrder, bigEndian                  = 1, 2
	typeOfExpr, typeOfData, exprVerdict       = 0, 1, 1
)

// maxAttribute is in bytes: the length of an attribute has 16 bits.
const maxAttribute = 1<<16 - 1

// choices are the elements of a map from a number to something that value reads:
//
//	{ NUMBER : VALUE , … }
func (b *batch) choices(l *words, value func() (*nl.RtAttr, bool)) (list *nl.RtAttr, n int, ok bool) {
	list = nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	if !l.take("{") {
		return nil, 0, false
	}
	for first := true; first || l.take(","); first = false {
		key, ok := decimal(l.next(), 32)
		if !ok || !l.take(":") {
			return nil, 0, false
		}
		v, ok := value()
		if n++; !ok || n > maxElements {
			return nil, 0, false
		}
		list.AddChild(nested(unix.NFTA_LIST_ELEM,
			nested(unix.NFTA_SET_ELEM_KEY, nl.NewRtAttr(unix.NFTA_DATA_VALUE, binary.NativeEndian.AppendUint32(nil, uint32(key)))),
			nested(unix.NFTA_SET_ELEM_DATA, v)))
	}
	return list, n, l.take("}") && list.Len() <= maxAttribute
}

// newMap takes in a map without a name, which the rule that follows has in it. github.com/google/nftables could, but says that its keys are big-endian, and nft would list them so.
func (b *batch) newMap(dataType uint32, size int, typeOf []byte, elements *nl.RtAttr, n int) (template string, id uint32) {
	b.ids++
	template, id = "__map%d", b.ids
	said := userdata.AppendUint32(nil, keyByteOrder, hostByteOrder)
	said = userdata.AppendUint32(said, dataByteOrder, 0)
	if typeOf != nil {
		said = userdata.Append(said, dataTypeOf, typeOf)
	}
	said = userdata.AppendUint32(said, dataInterval, 0)
	b.add(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE,
		str(unix.NFTA_SET_NAME, template),
		number(unix.NFTA_SET_FLAGS, unix.NFT_SET_ANONYMOUS|unix.NFT_SET_CONSTANT|unix.NFT_SET_MAP),
		number(unix.NFTA_SET_KEY_TYPE, typeInteger), number(unix.NFTA_SET_KEY_LEN, 4),
		number(unix.NFTA_SET_DATA_TYPE, dataType), number(unix.NFTA_SET_DATA_LEN, uint32(size)),
		number(unix.NFTA_SET_ID, id),
		nested(unix.NFTA_SET_DESC, number(unix.NFTA_SET_DESC_SIZE, uint32(n))),
		nl.NewRtAttr(unix.NFTA_SET_USERDATA, said))
	b.add(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, str(unix.NFTA_SET_ELEM_LIST_SET, template), number(unix.NFTA_SET_ELEM_LIST_SET_ID, id), elements)
	return template, id
}

// anyChain is what follows `numgen random mod`: one of several chains.
func (b *batch) anyChain(l *words) ([]expr.Any, bool) {
	number, ok := decimal(l.next(), 32)
	if !ok || !l.take("vmap") {
		return nil, false
	}
	elements, n, ok := b.choices(l, func() (*nl.RtAttr, bool) { return verdict(l) })
	if !ok {
		return nil, false
	}
	verdict := userdata.AppendUint32(nil, typeOfExpr, exprVerdict)
	name, id := b.newMap(typeVerdict, 0, userdata.Append(verdict, typeOfData, nil), elements, n)
	return []expr.Any{
		&expr.Numgen{Register: 1, Modulus: uint32(number), Type: unix.NFT_NG_RANDOM},
		&expr.Lookup{SourceRegister: 1, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: name, SetID: id},
	}, true
}
