// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"sigs.k8s.io/knftables"
)

func newNFT() (knftables.Interface, error) {
	nft, err := knftables.New(knftables.InetFamily, tableName, knftables.UseNetlink)
	if err != nil {
		return nil, fmt.Errorf("the pod network needs nftables: %w", err)
	}
	return nft, nil
}

// rulesApplier serializes applying rules. Callers that wait at the same time share one run.
type rulesApplier struct {
	nft knftables.Interface
	// network is the one for which the table is written. It is set before pods are served from it.
	network            atomic.Pointer[network]
	requestCount       atomic.Uint64
	mu                 sync.Mutex
	appliedCount       uint64 // every request up to this one is in the table
	writtenRules       *ruleset
	services           []netip.Prefix // the result of serviceAddresses that the table has
	verifiedGeneration uint32         // the kernel's generation in which the table was last complete
}

// applyRules makes the table contain the rules for the living sandboxes.
func (pn *podNetwork) applyRules(ctx context.Context) error {
	a := &pn.rules
	mine := a.requestCount.Add(1)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.appliedCount >= mine {
		return nil
	}
	upTo := a.requestCount.Load() // the list below includes each earlier request, and its network
	nw := a.network.Load()
	var ports []hostPort
	pods := slices.Clone(nw.podCIDRs)
	for _, r := range pn.attachments.list() {
		ports = append(ports, slices.DeleteFunc(r.hostPorts(), nw.reservesPort)...)
		for _, ip := range r.IPs { // a pod from before the node got other CIDRs
			if !slices.ContainsFunc(nw.podCIDRs, func(c netip.Prefix) bool { return c.Contains(ip) }) {
				pods = append(pods, netip.PrefixFrom(ip, ip.BitLen()))
			}
		}
	}
	services, err := serviceAddresses(pn.o.ServiceCIDRs)
	if err != nil {
		return err
	}
	rs := desiredTable(pods, pn.o.ClusterCIDRs, services, ports, pn.o.ReservedPorts)
	nw.backend.rules(&rs, nw.paths)
	if err := apply(ctx, a.nft, rs); err != nil {
		return err
	}
	a.appliedCount, a.writtenRules, a.services = upTo, &rs, services
	return nil
}

// ProtectOwnConnections renews the rules for packets of the node's own programs to loopback, in a table that an earlier
// run left. A Server writes its table when it runs. That is only once the API server replies, and the connection to it
// may need a port that was reserved since the earlier run. Without a table it changes nothing.
func ProtectOwnConnections(ctx context.Context, reserved []uint16) error {
	nft, err := newNFT()
	if err != nil {
		return err
	}
	if have, err := nft.ListAll(ctx); err != nil || !slices.Contains(have["chain"], chainOutput) {
		return nil // a table that cannot be listed is missing: see apply
	}
	var rs ruleset
	rs.output(reserved)
	tx := nft.NewTransaction()
	tx.Flush(&knftables.Chain{Name: chainOutput})
	addAll(tx, rs)
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("writing the chain %s of the nftables table %s: %w", chainOutput, tableName, err)
	}
	return nil
}

// apply makes the table contain exactly rs, in one transaction: packets meet the old table or the new one.
func apply(ctx context.Context, nft knftables.Interface, rs ruleset) error {
	// A table that cannot be listed is missing (the netlink adapter has no better error for it) or not understood.
	if have, err := nft.ListAll(ctx); err == nil {
		if err := nft.Run(ctx, transaction(nft, rs, have)); err == nil {
			return nil
		}
	}
	// Start over. This is also needed when a chain's hook or a map's type changed, which cannot be altered in place.
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	addAll(tx, rs)
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("writing the nftables table %s: %w", tableName, err)
	}
	return nil
}

// transaction returns the commands that make the table equal to rs. They empty the chains, sets and maps of rs, fill
// them again, and remove all others.
func transaction(nft knftables.Interface, rs ruleset, have map[string][]string) *knftables.Transaction {
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	wanted := map[string][]string{}
	for _, o := range rs.objects {
		tx.Add(o)
		tx.Flush(o)
		kind, name := nameOf(o)
		wanted[kind] = append(wanted[kind], name)
	}
	var stale []knftables.Object
	for kind, names := range have {
		for _, name := range names {
			if o := objectOf(kind, name); o != nil && !slices.Contains(wanted[kind], name) {
				stale = append(stale, o)
			}
		}
	}
	for _, o := range stale {
		if c, ok := o.(*knftables.Chain); ok {
			tx.Flush(c) // its rules may refer to other stale objects, which could not be removed before
		}
	}
	for _, o := range rs.content {
		tx.Add(o)
	}
	for _, o := range stale {
		tx.Delete(o)
	}
	return tx
}

func addAll(tx *knftables.Transaction, rs ruleset) {
	tx.Add(&knftables.Table{})
	for _, o := range append(slices.Clone(rs.objects), rs.content...) {
		tx.Add(o)
	}
}

func nameOf(o knftables.Object) (kind, name string) {
	switch o := o.(type) {
	case *knftables.Chain:
		return "chain", o.Name
	case *knftables.Set:
		return "set", o.Name
	case *knftables.Map:
		return "map", o.Name
	}
	return "", ""
}

func objectOf(kind, name string) knftables.Object {
	switch kind {
	case "chain":
		return &knftables.Chain{Name: name}
	case "set":
		return &knftables.Set{Name: name}
	case "map":
		return &knftables.Map{Name: name}
	}
	return nil
}
