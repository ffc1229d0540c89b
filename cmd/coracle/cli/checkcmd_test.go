// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/preflight"
)

// TestCheckKnowsTheBackend: the port between nodes is that of the back end to which the cluster has changed, as the
// server or the node remembers it, and not the flag's.
func TestCheckKnowsTheBackend(t *testing.T) {
	const vxlan, hostGW, wireguard, none = clusterconfig.NetworkVXLAN, clusterconfig.NetworkHostGateway, clusterconfig.NetworkWireGuard, clusterconfig.NetworkNone
	for _, c := range []struct {
		flag, server, node string // what the server and the node remember; empty for nothing
		want               int
	}{
		{vxlan, "", "", clusterconfig.VXLANPort}, {wireguard, "", "", clusterconfig.WireGuardPort}, {vxlan, wireguard, wireguard, clusterconfig.WireGuardPort},
		{vxlan, hostGW, hostGW, 0}, {vxlan, "", wireguard, clusterconfig.WireGuardPort}, {wireguard, vxlan, "", clusterconfig.VXLANPort},
		{vxlan, wireguard, vxlan, clusterconfig.WireGuardPort}, // the node was switched off before the cluster changed
		{none, "", vxlan, 0},
	} {
		s := &config.Server{Cluster: clusterconfig.Settings{NetworkBackend: c.flag}, Paths: config.Paths{ServerDir: t.TempDir(), AgentDir: t.TempDir()}}
		if err := errors.Join(clusterconfig.WriteBackend(s.Paths.ServerDir, c.server), os.Mkdir(filepath.Join(s.Paths.AgentDir, "cni"), 0o700),
			os.WriteFile(filepath.Join(s.Paths.AgentDir, "cni", "network.json"), []byte(`{"backend": "`+c.node+`"}`), 0o600)); err != nil {
			t.Fatal(err)
		}
		n := needsOf(s)
		i := slices.IndexFunc(n.Ports, func(p preflight.Port) bool { return p.What == "packets between nodes' pods" })
		got := 0
		if i >= 0 {
			got = n.Ports[i].Number
		}
		if n.Firewall.Tunnel != c.want || got != c.want {
			t.Errorf("%+v: the firewall has to let %d through, and the port %d is looked at", c, n.Firewall.Tunnel, got)
		}
	}
}

// TestCheckKnowsWhoNeedsNFTables: a node that leaves pods' network and Services to other programs does without them,
// and so does a server that runs no pods.
func TestCheckKnowsWhoNeedsNFTables(t *testing.T) {
	address := []netip.Addr{netip.MustParseAddr("192.0.2.9")}
	for _, c := range []struct {
		s       config.Server
		without bool
	}{
		{config.Server{Cluster: clusterconfig.Settings{NetworkBackend: clusterconfig.NetworkVXLAN}}, false},
		{config.Server{Cluster: clusterconfig.Settings{NetworkBackend: clusterconfig.NetworkNone}}, false},
		{config.Server{Cluster: clusterconfig.Settings{NetworkBackend: clusterconfig.NetworkVXLAN, NoServiceProxy: true}}, false},
		{config.Server{Cluster: clusterconfig.Settings{NetworkBackend: clusterconfig.NetworkNone, NoServiceProxy: true}}, true},
		{config.Server{Cluster: clusterconfig.Settings{NetworkBackend: clusterconfig.NetworkVXLAN}, DisableAgent: true}, true},
		{config.Server{Cluster: clusterconfig.Settings{NetworkBackend: clusterconfig.NetworkVXLAN}, DisableAgent: true, VIPs: address}, false},
	} {
		if got := needsOf(&c.s).NoNFTables; got != c.without {
			t.Errorf("back end %s, no proxy %t, no node %t, addresses %v: not needed: %t", c.s.Cluster.NetworkBackend, c.s.Cluster.NoServiceProxy, c.s.DisableAgent, c.s.VIPs, got)
		}
	}
}
