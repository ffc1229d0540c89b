// SPDX-License-Identifier: Apache-2.0

package nftsend

import (
	"encoding/binary"
	"strings"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// maxAffinity is in seconds, and the API's.
const maxAffinity = 86400

// clients takes in a set of clients that each are in it for a while, which is what session affinity remembers. It is what follows `add set FAMILY TABLE SET`.
func (b *batch) clients(name string, l *words) bool {
	addr := "ipv4_addr"
	if b.addrType() == typeIPv6Addr {
		addr = "ipv6_addr"
	}
	if _, other := b.sets[name]; other || !l.take("{", "type", addr, ";", "flags", "dynamic,timeout", ";", "timeout") {
		return false
	}
	digits, inSeconds := strings.CutSuffix(l.next(), "s")
	seconds, ok := decimal(digits, 32)
	b.ids++
	b.added[name] = b.ids
	b.add(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE,
		str(unix.NFTA_SET_NAME, name),
		number(unix.NFTA_SET_FLAGS, unix.NFT_SET_EVAL|unix.NFT_SET_TIMEOUT),
		number(unix.NFTA_SET_KEY_TYPE, b.addrType()), number(unix.NFTA_SET_KEY_LEN, uint32(b.addrLen())),
		number(unix.NFTA_SET_ID, b.ids),
		nl.NewRtAttr(unix.NFTA_SET_TIMEOUT, binary.BigEndian.AppendUint64(nil, seconds*1000)),
		nl.NewRtAttr(unix.NFTA_SET_USERDATA, userdata.AppendUint32(nil, keyByteOrder, bigEndian)))
	return ok && inSeconds && 0 < seconds && seconds <= maxAffinity && l.take(";", "}")
}

// remember is what follows `update`: the client is put into a set, or stays there for longer.
//
//	@SET { FAMILY saddr }
func (b *batch) remember(l *words) ([]expr.Any, bool) {
	set, ok := strings.CutPrefix(l.next(), "@")
	id, known := b.added[set]
	return []expr.Any{
		b.source(b.addrLen()),
		&expr.Dynset{SrcRegKey: 1, SetName: set, SetID: id, Operation: unix.NFT_DYNSET_OP_UPDATE},
	}, ok && known && l.take("{", b.family(), "saddr", "}")
}
