// SPDX-License-Identifier: Apache-2.0

package vip

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/nft"
)

// Table is the name of the nftables tables with the translations, one for each address family.
const Table = "coracle-vip"

// priorityBeforeProxies is a priority before the Service proxies' translations (dstnat, -100), which do not know these
// addresses.
const priorityBeforeProxies = -110

// Redirect translates packets to an address to another one, which this machine has: TCP to one port, and pings.
type Redirect struct {
	Address netip.Addr
	Port    uint16
	To      netip.Addr
}

// SetRedirects replaces the machine's translations by these. They need no process afterwards. An empty list removes
// them.
func SetRedirects(redirects []Redirect) error {
	return errors.Join(setRedirects(nft.IPv4, redirects), setRedirects(nft.IPv6, redirects))
}

// RedirectsThere reports whether the tables of these translations exist: another program may have flushed them.
func RedirectsThere(redirects []Redirect) (bool, error) {
	for _, r := range redirects {
		there, err := nft.Exists(nft.Table{Family: familyOf(r.Address), Name: Table})
		if err != nil || !there {
			return false, err
		}
	}
	return true, nil
}

func familyOf(a netip.Addr) nftables.TableFamily {
	if a.Is4() {
		return nft.IPv4
	}
	return nft.IPv6
}

func setRedirects(family nftables.TableFamily, redirects []Redirect) error {
	var own []Redirect
	for _, r := range redirects {
		if familyOf(r.Address) == family {
			own = append(own, r)
		}
	}
	if len(own) == 0 {
		return nft.Delete(nft.Table{Family: family, Name: Table})
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	table := &nftables.Table{Family: family, Name: Table}
	conn.AddTable(table) // so that DelTable finds one
	conn.DelTable(table)
	conn.AddTable(table)
	for _, hook := range []struct {
		name string
		at   *nftables.ChainHook
	}{{"prerouting", nftables.ChainHookPrerouting}, {"output", nftables.ChainHookOutput}} {
		chain := conn.AddChain(&nftables.Chain{Table: table, Name: hook.name, Type: nftables.ChainTypeNAT, Hooknum: hook.at,
			Priority: nftables.ChainPriorityRef(priorityBeforeProxies)})
		for _, r := range own {
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: r.toPort()})
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: r.pings()})
		}
	}
	// Packets to the address that were not translated must not be forwarded to the network that they came from.
	chain := conn.AddChain(&nftables.Chain{Table: table, Name: "forward", Type: nftables.ChainTypeFilter,
		Hooknum:  nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter})
	for _, r := range own {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(r.isFor(), &expr.Verdict{Kind: expr.VerdictDrop})})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("setting the nftables table %s: %w", Table, err)
	}
	return nil
}

// isFor matches packets to the address.
func (r Redirect) isFor() []expr.Any {
	offset, length := uint32(16), uint32(4)
	if r.Address.Is6() {
		offset, length = 24, 16
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: r.Address.AsSlice()},
	}
}

func protocol(number byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}}}
}

func (r Redirect) translate() []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: r.To.AsSlice()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(familyOf(r.Address)), RegAddrMin: 1},
	}
}

func (r Redirect) toPort() []expr.Any {
	out := append(r.isFor(), protocol(unix.IPPROTO_TCP)...)
	out = append(out,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(r.Port)})
	return append(out, r.translate()...)
}

func (r Redirect) pings() []expr.Any {
	number, echo := byte(unix.IPPROTO_ICMP), byte(8)
	if r.Address.Is6() {
		number, echo = unix.IPPROTO_ICMPV6, 128
	}
	out := append(r.isFor(), protocol(number)...)
	out = append(out,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{echo}})
	return append(out, r.translate()...)
}
