// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/coracle-k8s/coracle/agent/balancer"
	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
)

// finder finds a server for an agent without usable credentials, which therefore is no gossip member yet. The agent's
// address may have changed, or those of the servers, or both.
type finder struct {
	c       *config.Agent
	port    *agentPort
	servers *balancer.Balancer
	log     *slog.Logger
	line    *status.Part
}

// otherMachines returns the known servers, followed by all other known machines. Other machines relay connections to a
// server.
func (f *finder) otherMachines() []string {
	out := f.servers.Servers()
	for _, a := range gossip.Known(membersFile(f.c)) {
		if text := a.String(); !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return out
}

// search searches for servers on the machine's networks.
func (f *finder) search(ctx context.Context, keys clusterconfig.GossipKeys) {
	found, err := gossip.Search(ctx, gossip.SearchOptions{
		Packets: f.port.packets, Keys: keys, Links: config.LocalHost{}.Links, Ports: portsOf(gossip.Known(membersFile(f.c))),
	})
	if err != nil {
		f.log.Debug("the servers could not be searched for on this machine's networks", "error", err)
	}
	if len(found) == 0 {
		f.line.Set(status.Degraded, noServerHint(f.otherMachines()))
		return
	}
	f.log.Info("servers were found on this machine's networks", "servers", found)
	if err := f.servers.Set(clusterconfig.Strings(found)); err != nil {
		f.log.Warn("the list of servers could not be saved; retrying", "error", err)
	}
}

func portsOf(in []netip.AddrPort) []uint16 {
	var out []uint16
	for _, a := range in {
		out = append(out, a.Port())
	}
	return out
}
