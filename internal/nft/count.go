// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// PolicyTable is the name of the table of NetworkPolicies (package netpolicy). Its family is inet.
const PolicyTable = "coracle-policy"

// IngressTable is the name of the table that protects the ingress proxy (package agent/ingress). Its family is inet.
const IngressTable = "coracle-ingress"

// Generation returns a number that the kernel changes with every change of any table of this network namespace.
func Generation() (uint32, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	messages, err := req.Execute(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN)
	if err != nil {
		return 0, fmt.Errorf("asking for nftables' generation: %w", err)
	}
	for _, m := range messages {
		if len(m) < nl.SizeofNfgenmsg {
			continue
		}
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofNfgenmsg:])
		if err != nil {
			return 0, fmt.Errorf("reading nftables' generation: %w", err)
		}
		for _, a := range attrs {
			if a.Attr.Type&nl.NLA_TYPE_MASK == unix.NFTA_GEN_ID && len(a.Value) >= 4 {
				return binary.BigEndian.Uint32(a.Value), nil
			}
		}
	}
	return 0, errors.New("the kernel does not say its nftables' generation")
}

// Counts holds the number of rules by chain, and of elements by set or map, of a table.
type Counts struct {
	Rules, Elements map[string]int
}

// Count counts the rules and elements of a table. A missing table has none. Anonymous sets are not counted. If a
// program changes the table meanwhile, the counts are from different moments.
func Count(t Table) (Counts, error) {
	out := Counts{Rules: map[string]int{}, Elements: map[string]int{}}
	if ok, err := Exists(t); err != nil || !ok {
		return out, err
	}
	conn, err := nftables.New()
	if err != nil {
		return out, fmt.Errorf("opening nftables: %w", err)
	}
	table := &nftables.Table{Family: t.Family, Name: t.Name}
	chains, err := conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return out, fmt.Errorf("listing the chains of table %s: %w", t.Name, err)
	}
	for _, c := range chains {
		if c.Table.Name == t.Name {
			out.Rules[c.Name] = 0
		}
	}
	rules, err := CountRules(t)
	if err != nil {
		return out, err
	}
	maps.Copy(out.Rules, rules)
	sets, err := conn.GetSets(table)
	if err != nil {
		return out, fmt.Errorf("listing the sets of table %s: %w", t.Name, err)
	}
	for _, s := range sets {
		if s.Anonymous {
			continue
		}
		n, err := countElements(t, s.Name)
		if err != nil {
			return out, err
		}
		out.Elements[s.Name] = n
	}
	return out, nil
}

// dump requests all objects of a kind and returns the raw messages. The library would decode each object.
func dump(t Table, get, answer int, attrs ...*nl.RtAttr) ([][]byte, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|get, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(t.Family), Version: nl.NFNETLINK_V0})
	for _, a := range attrs {
		req.AddData(a)
	}
	return req.Execute(unix.NETLINK_NETFILTER, uint16(unix.NFNL_SUBSYS_NFTABLES<<8|answer))
}

// CountRules counts the rules in the chains of a table. The result does not have chains without rules.
func CountRules(t Table) (map[string]int, error) {
	messages, err := dump(t, unix.NFT_MSG_GETRULE, unix.NFT_MSG_NEWRULE,
		nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(t.Name)))
	if err != nil {
		return nil, fmt.Errorf("listing the rules of table %s: %w", t.Name, err)
	}
	out := map[string]int{}
	for _, m := range messages {
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofNfgenmsg:])
		if err != nil {
			return nil, fmt.Errorf("reading the rules of table %s: %w", t.Name, err)
		}
		table, chain := "", ""
		for _, a := range attrs {
			switch a.Attr.Type & nl.NLA_TYPE_MASK {
			case unix.NFTA_RULE_TABLE:
				table = nl.BytesToString(a.Value)
			case unix.NFTA_RULE_CHAIN:
				chain = nl.BytesToString(a.Value)
			}
		}
		if table == t.Name {
			out[chain]++
		}
	}
	return out, nil
}

func countElements(t Table, set string) (int, error) {
	messages, err := dump(t, unix.NFT_MSG_GETSETELEM, unix.NFT_MSG_NEWSETELEM,
		nl.NewRtAttr(unix.NFTA_SET_ELEM_LIST_TABLE, nl.ZeroTerminated(t.Name)), nl.NewRtAttr(unix.NFTA_SET_ELEM_LIST_SET,
			nl.ZeroTerminated(set)))
	if err != nil {
		return 0, fmt.Errorf("listing the set %s of table %s: %w", set, t.Name, err)
	}
	n := 0
	for _, m := range messages {
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofNfgenmsg:])
		if err != nil {
			return 0, fmt.Errorf("reading the set %s of table %s: %w", set, t.Name, err)
		}
		for _, a := range attrs {
			if a.Attr.Type&nl.NLA_TYPE_MASK != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			elems, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return 0, fmt.Errorf("reading the set %s of table %s: %w", set, t.Name, err)
			}
			n += len(elems)
		}
	}
	return n, nil
}
