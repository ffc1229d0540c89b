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

// Limits of what is sent. nft takes more, in more messages.
const (
	maxText     = 1 << 16 // bytes; the socket takes some 200 KB at once, and a line becomes a message of two to three times its size
	maxElements = 1000    // of a map in a rule, which is one attribute of 64 KB at most
	maxComment  = 128     // bytes, as with nft
	maxName     = 255     // bytes, as in the kernel
)

// Set is a set's type, or a map's that leads to verdicts.
type Set struct {
	Key      []Type // one, or several that are concatenated
	Verdicts bool   // it is a map
}

// Type is that of a value.
type Type int

// The types, by nft's names.
const (
	IPAddr      Type = iota // ipv4_addr or ipv6_addr, by the table's family
	InetProto               // tcp, udp or sctp
	InetService             // a port
)

var protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// read takes in the lines of a transaction.
func (b *batch) read(text string) error {
	if len(text) > maxText {
		return ErrUnknown
	}
	for line := range strings.Lines(text) {
		l, ok := split(line)
		if !ok || !b.line(&l) || len(l) > 0 {
			return ErrUnknown
		}
	}
	return nil
}

// line takes in one of
//
//	add chain FAMILY TABLE CHAIN
//	flush chain FAMILY TABLE CHAIN
//	delete chain FAMILY TABLE CHAIN
//	add rule FAMILY TABLE CHAIN RULE [ comment "COMMENT" ]
//	add element FAMILY TABLE SET { VALUE [ . VALUE … ] [ comment "COMMENT" ] [ : VERDICT ] }
//	delete element FAMILY TABLE SET { VALUE [ . VALUE … ] }
//	add set FAMILY TABLE SET { type TYPE ; flags dynamic,timeout ; timeout SECONDSs ; }
//	delete set FAMILY TABLE SET
func (b *batch) line(l *words) bool {
	verb, object := l.next(), l.next()
	if !l.take(b.family(), b.table.Name) {
		return false
	}
	name := l.next()
	if object != "element" && !chainName(name) {
		return false
	}
	switch verb + " " + object {
	case "add chain":
		b.add(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, str(unix.NFTA_CHAIN_NAME, name))
	case "flush chain":
		b.add(unix.NFT_MSG_DELRULE, 0, str(unix.NFTA_RULE_CHAIN, name))
	case "delete chain":
		b.add(unix.NFT_MSG_DELCHAIN, 0, str(unix.NFTA_CHAIN_NAME, name))
	case "add rule":
		return b.rule(name, l)
	case "add element":
		return b.element(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, name, l)
	case "delete element":
		return b.element(unix.NFT_MSG_DELSETELEM, 0, name, l)
	case "add set":
		return b.clients(name, l)
	case "delete set":
		_, other := b.sets[name]
		delete(b.added, name)
		b.add(unix.NFT_MSG_DELSET, 0, str(unix.NFTA_SET_NAME, name))
		return !other
	default:
		return false
	}
	return true
}

func (b *batch) element(kind, flags int, name string, l *words) bool {
	set, known := b.sets[name]
	if !known || !l.take("{") {
		return false
	}
	var key []byte
	for i, t := range set.Key {
		if i > 0 && !l.take(".") {
			return false
		}
		v, ok := b.value(t, l.next())
		if !ok {
			return false
		}
		key = append(key, v...)
	}
	attrs := []*nl.RtAttr{nested(unix.NFTA_SET_ELEM_KEY, nl.NewRtAttr(unix.NFTA_DATA_VALUE, key))}
	comment, ok := l.comment()
	if !ok {
		return false
	}
	if set.Verdicts && kind == unix.NFT_MSG_NEWSETELEM {
		colon := l.take(":")
		v, ok := verdict(l)
		if !colon || !ok {
			return false
		}
		attrs = append(attrs, nested(unix.NFTA_SET_ELEM_DATA, v))
	}
	if comment != "" {
		attrs = append(attrs, nl.NewRtAttr(unix.NFTA_SET_ELEM_USERDATA, userdata.AppendString(nil, userdata.NFTNL_UDATA_SET_ELEM_COMMENT, comment)))
	}
	b.add(kind, flags, str(unix.NFTA_SET_ELEM_LIST_SET, name), nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, nested(unix.NFTA_LIST_ELEM, attrs...)))
	return l.take("}")
}

// value is one part of a concatenation, each of which has a multiple of four bytes.
func (b *batch) value(t Type, word string) ([]byte, bool) {
	switch t {
	case IPAddr:
		a, err := netip.ParseAddr(word)
		return a.AsSlice(), err == nil && b.ours(a) && a.String() == word
	case InetProto:
		p, ok := protocols[word]
		return []byte{p, 0, 0, 0}, ok
	case InetService:
		port, ok := decimal(word, 16)
		return append(binary.BigEndian.AppendUint16(nil, uint16(port)), 0, 0), ok
	}
	return nil, false
}

// decimal is a number as upstream writes it: with a zero before it nft may read another one. So are addresses read, of which nft does not know each form either.
func decimal(word string, bits int) (uint64, bool) {
	n, err := strconv.ParseUint(word, 10, bits)
	return n, err == nil && strconv.FormatUint(n, 10) == word
}

// chainName says whether a word is a chain's name to nft, or a set's. Upstream's names of Services' chains and of endpoints' sets have a slash or a dash in them, which tells them from words that mean something else there.
func chainName(word string) bool {
	for i, c := range []byte(word) {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && (i == 0 || !strings.ContainsRune("0123456789/-_.", rune(c))) {
			return false
		}
	}
	return len(word) <= maxName && strings.ContainsAny(word, "/-")
}

// ours says whether an address is of the table's family, and one that nft can read: with neither a zone nor an IPv4 address in it.
func (b *batch) ours(a netip.Addr) bool {
	return a.Is4() == (b.table.Family == nfttable.IPv4) && a.Zone() == "" && !a.Is4In6()
}

// verdict is one of
//
//	drop
//	goto CHAIN
func verdict(l *words) (*nl.RtAttr, bool) {
	switch {
	case l.take("drop"):
		return nested(unix.NFTA_DATA_VERDICT, number(unix.NFTA_VERDICT_CODE, 0)), true
	case l.take("goto"):
		kind, to := int32(expr.VerdictGoto), l.next()
		return nested(unix.NFTA_DATA_VERDICT, number(unix.NFTA_VERDICT_CODE, uint32(kind)), str(unix.NFTA_VERDICT_CHAIN, to)), chainName(to)
	}
	return nil, false
}

// words are what is left of a line.
type words []string

// split takes a line apart. What stands in quotes is one word, with a quote before it.
func split(line string) (words, bool) {
	var out words
	line = strings.TrimSuffix(line, "\n")
	for line = strings.TrimLeft(line, " "); line != ""; line = strings.TrimLeft(line, " ") {
		var word string
		if quoted, ok := strings.CutPrefix(line, `"`); ok {
			text, rest, ended := strings.Cut(quoted, `"`)
			if !ended || strings.Contains(text, `\`) {
				return nil, false
			}
			word, line = `"`+text, rest
		} else {
			word, line, _ = strings.Cut(line, " ")
		}
		out = append(out, word)
	}
	return out, true
}

// next takes a word off; it is empty where there is none.
func (l *words) next() string {
	if len(*l) == 0 {
		return ""
	}
	out := (*l)[0]
	*l = (*l)[1:]
	return out
}

// take takes words off, if these are the next.
func (l *words) take(want ...string) bool {
	if len(*l) < len(want) {
		return false
	}
	for i, w := range want {
		if (*l)[i] != w {
			return false
		}
	}
	*l = (*l)[len(want):]
	return true
}

// comment takes a comment off, if there is one. It is not ok where it cannot be one of nft's.
func (l *words) comment() (string, bool) {
	if !l.take("comment") {
		return "", true
	}
	quoted := l.next()
	text, ok := strings.CutPrefix(quoted, `"`)
	odd := func(c rune) bool { return c < ' ' || c > '~' }
	return text, ok && text != "" && len(text) <= maxComment && !strings.ContainsFunc(text, odd)
}
