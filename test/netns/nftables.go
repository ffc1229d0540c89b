// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// WriteNFT has nft write a text inside a namespace, all of it or nothing.
func WriteNFT(in Doer, text string) error {
	return in.Do(func() error {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// Attributes of nftables' objects that count objects, and do not say what one is.
var nftHandles = map[int][]uint16{
	unix.NFT_MSG_NEWCHAIN: {unix.NFTA_CHAIN_HANDLE},
	unix.NFT_MSG_NEWRULE:  {unix.NFTA_RULE_HANDLE, unix.NFTA_RULE_POSITION},
	unix.NFT_MSG_NEWSET:   {16}, // NFTA_SET_HANDLE
}

// NFTTable is all that the kernel says of an nftables table inside a namespace, in its own bytes: a string for each chain, rule and set in the kernel's order, and for each
// element of all sets in any. Without handles it is the same for two tables to which the same was done, even if the kernel has refused something else of one of them before.
func NFTTable(t testing.TB, in Doer, family uint8, table string, handles bool) []string {
	t.Helper()
	var out []string
	err := in.Do(func() error {
		var sets []string
		for _, q := range []struct{ get, answer int }{
			{unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_NEWCHAIN}, {unix.NFT_MSG_GETRULE, unix.NFT_MSG_NEWRULE}, {unix.NFT_MSG_GETSET, unix.NFT_MSG_NEWSET},
		} {
			objects, err := nftObjects(q.get, q.answer, family, table)
			if err != nil {
				return err
			}
			for _, o := range objects {
				line := fmt.Sprint(q.answer)
				for _, a := range o {
					kind := a.kind & nl.NLA_TYPE_MASK
					if q.answer == unix.NFT_MSG_NEWSET && kind == unix.NFTA_SET_NAME {
						sets = append(sets, nl.BytesToString(a.value))
					}
					if handles || !slices.Contains(nftHandles[q.answer], kind) {
						line += fmt.Sprint(" ", a.kind, ":", string(a.value))
					}
				}
				out = append(out, line)
			}
		}
		for _, s := range sets {
			elements, err := nftElements(family, table, s)
			if err != nil {
				return err
			}
			slices.Sort(elements) // by a hash with a seed of its own
			out = append(out, elements...)
		}
		return nil
	})
	if err != nil {
		t.Fatal("listing nftables: ", err)
	}
	return out
}

type nftAttr struct {
	kind  uint16
	value []byte
}

// nftObjects asks for all objects of a kind of a table.
func nftObjects(get, answer int, family uint8, table string, attrs ...*nl.RtAttr) ([][]nftAttr, error) {
	const ofTable = 1 // the first attribute of all objects
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|get, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(ofTable, nl.ZeroTerminated(table)))
	for _, a := range attrs {
		req.AddData(a)
	}
	messages, err := req.Execute(unix.NETLINK_NETFILTER, uint16(unix.NFNL_SUBSYS_NFTABLES<<8|answer))
	if err != nil {
		return nil, err
	}
	var out [][]nftAttr
	for _, m := range messages {
		all, err := nl.ParseRouteAttr(m[nl.SizeofNfgenmsg:]) // before which the kernel's generation is
		if err != nil {
			return nil, err
		}
		var o []nftAttr
		ours := m[0] == family // chains are those of all tables
		for _, a := range all {
			o = append(o, nftAttr{a.Attr.Type, a.Value})
			if a.Attr.Type&nl.NLA_TYPE_MASK == ofTable {
				ours = ours && nl.BytesToString(a.Value) == table
			}
		}
		if ours {
			out = append(out, o)
		}
	}
	return out, nil
}

func nftElements(family uint8, table, set string) ([]string, error) {
	messages, err := nftObjects(unix.NFT_MSG_GETSETELEM, unix.NFT_MSG_NEWSETELEM, family, table, nl.NewRtAttr(unix.NFTA_SET_ELEM_LIST_SET, nl.ZeroTerminated(set)))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range messages {
		for _, a := range m {
			if a.kind&nl.NLA_TYPE_MASK != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			list, err := nl.ParseRouteAttr(a.value)
			if err != nil {
				return nil, err
			}
			for _, e := range list {
				out = append(out, "element of "+set+" "+string(e.Value))
			}
		}
	}
	return out, nil
}
