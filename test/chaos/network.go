// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"runtime"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/netns"
)

const (
	bridgeName = "chaos0"
	clientsIP  = "10.78.0.1"
)

// site is one bridge with a network namespace for each server. Clients are in the test's own namespace, on the bridge.
type site struct {
	t      testing.TB
	bridge netns.Bridge
	hosts  map[string]*host
}

// host is a server's network namespace.
type host struct {
	name, ip string
	ns       *netns.NS
	work     chan func() // runs on a thread inside the namespace that lives as long as the test's process

	drop map[string]bool // packets from these servers
	loss map[string]int  // percent of packets from these servers
}

func newSite(t testing.TB) *site {
	t.Helper()
	netns.Require(t)
	return &site{t: t, bridge: netns.NewBridge(t, bridgeName, 0, clientsIP+"/24"), hosts: map[string]*host{}}
}

// addHost makes the namespace of the server with a number from 1 on.
func (s *site) addHost(name string, number int) *host {
	s.t.Helper()
	h := &host{
		name: name, ip: fmt.Sprintf("10.78.0.%d", 10+number), ns: netns.New(s.t),
		work: make(chan func()), drop: map[string]bool{}, loss: map[string]int{},
	}
	dev := fmt.Sprintf("chaos0-%d", number)
	s.bridge.Join(s.t, h.ns, dev, h.ip+"/24")
	// Processes are started from this thread: their death signal follows it.
	go func() {
		runtime.LockOSThread()
		_ = h.ns.Do(func() error {
			runtime.LockOSThread()
			for f := range h.work {
				f()
			}
			return nil
		})
	}()
	s.t.Cleanup(func() { close(h.work) })
	s.hosts[name] = h
	return h
}

// do runs f inside the namespace, on the thread that stays.
func (h *host) do(f func() error) error {
	done := make(chan error, 1)
	h.work <- func() { done <- f() }
	return <-done
}

// cut drops what the server gets from another one.
func (s *site) cut(from, to string) error {
	s.hosts[to].drop[from] = true
	return s.hosts[to].apply(s.hosts)
}

// lose drops a part of what the server gets from another one: TCP sends it again, so the link is slow and uneven.
func (s *site) lose(from, to string, percent int) error {
	s.hosts[to].loss[from] = percent
	return s.hosts[to].apply(s.hosts)
}

// slow bounds what the server sends to everybody.
func (s *site) slow(name string, bytesPerSecond uint64) error {
	return s.hosts[name].do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.QdiscReplace(&netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			Rate:       bytesPerSecond, Buffer: netlink.Xmittime(bytesPerSecond, 16<<10), Limit: uint32(bytesPerSecond/2) + 64<<10,
		})
	})
}

// heal makes all links whole and quick.
func (s *site) heal() error {
	for _, name := range slices.Sorted(maps.Keys(s.hosts)) {
		h := s.hosts[name]
		clear(h.drop)
		clear(h.loss)
		if err := h.apply(s.hosts); err != nil {
			return err
		}
		if err := h.do(unslow); err != nil {
			return err
		}
	}
	return nil
}

func unslow() error {
	l, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	qdiscs, err := netlink.QdiscList(l)
	if err != nil {
		return err
	}
	for _, q := range qdiscs {
		if q.Type() == "tbf" {
			return netlink.QdiscDel(q)
		}
	}
	return nil
}

// apply makes the namespace's rules what the host's fields say.
func (h *host) apply(hosts map[string]*host) error {
	return h.do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return fmt.Errorf("opening nftables: %w", err)
		}
		table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "chaos"})
		conn.FlushTable(table)
		chain := conn.AddChain(&nftables.Chain{
			Name: "input", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
		})
		for from := range h.drop {
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(sentBy(hosts[from].ip), drop())})
		}
		for from, percent := range h.loss {
			exprs := append(sentBy(hosts[from].ip), sometimes(percent)...)
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(exprs, drop())})
		}
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("rules of %s: %w", h.name, err)
		}
		return nil
	})
}

// sentBy matches IPv4 packets from an address.
func sentBy(ip string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: net.ParseIP(ip).To4()},
	}
}

func sometimes(percent int) []expr.Any {
	return []expr.Any{
		&expr.Numgen{Register: 1, Modulus: 100, Type: unix.NFT_NG_RANDOM},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binary.BigEndian.AppendUint32(nil, uint32(percent))},
	}
}

func drop() expr.Any { return &expr.Verdict{Kind: expr.VerdictDrop} }
