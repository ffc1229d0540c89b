// SPDX-License-Identifier: Apache-2.0

package hostfirewall

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/coracle-k8s/coracle/internal/nft"
)

// families are the table families whose hooks routed packets pass.
var families = map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip",
	nftables.TableFamilyIPv6: "ip6"}

// isOwnTable says whether a table is coracle's own or the Service proxy's. The proxy's is upstream's and has this name.
func isOwnTable(table string) bool {
	return strings.HasPrefix(table, "coracle") || table == "kube-proxy"
}

// reloadTable is the name of firewalld's table while it reloads its rules. The table drops all new connections for a
// second.
const reloadTable = "firewalld_policy_drop"

// Find returns the closed chains of all other programs' tables in nftables, including those of iptables-nft. It does
// not read the tables of iptables-legacy.
func Find() ([]Chain, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("opening nftables: %w", err)
	}
	all, err := conn.ListChains()
	if nft.Missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing nftables chains: %w", err)
	}
	var out []Chain
	for _, c := range all {
		family, hook := families[c.Table.Family], hookOf(c)
		if family == "" || hook == "" || isOwnTable(c.Table.Name) || c.Table.Name == reloadTable {
			continue
		}
		if closed, err := isClosed(conn, c); err != nil {
			return nil, err
		} else if !closed {
			continue
		}
		has := func(name string) bool {
			return slices.ContainsFunc(all, func(other *nftables.Chain) bool {
				return other.Table.Family == c.Table.Family && other.Table.Name == c.Table.Name && other.Name == name
			})
		}
		out = append(out, Chain{Program: ownerNFT(c, has, hook), Hook: hook, Family: family, Table: c.Table.Name, Name: c.Name})
	}
	return out, nil
}

func ownerNFT(c *nftables.Chain, has func(string) bool, hook Hook) Program {
	switch {
	case c.Table.Name == "firewalld":
		return Firewalld
	case c.Table.Name == "filter" && c.Name == strings.ToUpper(string(hook)) && c.Table.Family != nftables.TableFamilyINet:
		return ownerOf(has, hook) // iptables' names, in one of iptables' families
	}
	return NFTables
}

func hookOf(c *nftables.Chain) Hook {
	switch {
	case c.Hooknum == nil:
	case *c.Hooknum == *nftables.ChainHookInput:
		return Input
	case *c.Hooknum == *nftables.ChainHookForward:
		return Forward
	}
	return ""
}

// isClosed says whether a base chain drops the packets that none of its rules accepts: by the chain's policy, or by its
// last rule, as with firewalld.
func isClosed(conn *nftables.Conn, c *nftables.Chain) (bool, error) {
	if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
		return true, nil
	}
	rules, err := conn.GetRules(c.Table, c)
	if err != nil {
		return false, fmt.Errorf("listing the rules of the nftables chain %s: %w", c.Name, err)
	}
	return len(rules) > 0 && dropsAll(rules[len(rules)-1]), nil
}

// dropsAll says whether a rule drops or rejects every packet that reaches it.
func dropsAll(r *nftables.Rule) bool {
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Reject:
			return true
		case *expr.Verdict:
			return e.Kind == expr.VerdictDrop
		case *expr.Target:
			return e.Name == "REJECT" // iptables' target
		default:
			return false // the rule matches some packets only
		}
	}
	return false
}
