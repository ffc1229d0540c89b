// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/coracle-k8s/coracle/agent"
	"github.com/coracle-k8s/coracle/cmd/coracle/cli"
	"github.com/coracle-k8s/coracle/internal/carried"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/server"
)

// prepareNode unpacks what the node needs, gets its credentials from the server beside it, and returns what runs it.
func prepareNode(c *config.Server, p *cli.Process, s *server.Server) (func(context.Context) error, error) {
	if c.DisableAgent {
		return func(context.Context) error { return nil }, nil
	}
	dir, err := carried.Unpack(c.Paths.DataDir)
	if err != nil {
		return nil, err
	}
	// Upstream's libraries look for the programs they run (nft above all) on the PATH only.
	if err := os.Setenv("PATH", dir.Path+string(os.PathListSeparator)+os.Getenv("PATH")); err != nil {
		return nil, fmt.Errorf("setting PATH: %w", err)
	}
	cred, err := s.AgentCredentials(c.Node.Name, c.Node.IPs)
	if err != nil {
		return nil, err
	}
	o := agent.Options{
		DataDir: c.Paths.DataDir, RunDir: c.Paths.RunDir, BinDir: dir.Stable,
		PauseTar: dir.File("pause.tar"), PauseImage: carried.PauseImage,
		NodeName: c.Node.Name, NodeIPs: addresses(c.Node.IPs...), Labels: c.Node.Labels,
		KubeletKubeconfig: cred.KubeletKubeconfig, NetworkKubeconfig: cred.NetworkKubeconfig,
		KubeletServingCert: cred.KubeletServing, KubeletServingKey: cred.KubeletServing,
		ClientCAFile:  cred.ClientCAFile,
		ClusterCIDRs:  prefixes(c.ClusterCIDRs),
		ServiceCIDRs:  prefixes(c.ServiceCIDRs),
		ClusterDomain: c.ClusterDomain,

		RegistriesFile: c.Node.RegistriesFile, ResolvConf: c.Node.ResolvConf,
		Snapshotter: c.Node.Snapshotter, KubeletArgs: c.Node.KubeletArgs,
		LeaseDuration: nodeLease,
		WaitAPI: func(ctx context.Context) error {
			select {
			case <-s.Ready():
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
		DisableProxy: c.DisableKubeProxy, NodePortAddresses: c.Node.NodePortAddresses,
		Logger: p.Log.Logger, Board: p.Board,
	}
	if c.Node.PauseImage != "" {
		o.PauseTar, o.PauseImage = "", c.Node.PauseImage
	}
	if !c.Disabled(config.PartDNS) {
		o.ClusterDNS = addresses(c.ClusterDNS)
	}
	for _, t := range c.Node.Taints {
		o.Taints = append(o.Taints, t.String())
	}
	return func(ctx context.Context) error { return agent.Run(ctx, o) }, nil
}

// addresses turns checked addresses into the form that the node's parts use.
func addresses(ips ...net.IP) []netip.Addr {
	out := make([]netip.Addr, 0, len(ips))
	for _, ip := range ips {
		a, _ := netip.AddrFromSlice(ip)
		out = append(out, a.Unmap())
	}
	return out
}

// prefixes turns checked networks into the form that the node's parts use.
func prefixes(nets []*net.IPNet) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(nets))
	for _, n := range nets {
		addr, _ := netip.AddrFromSlice(n.IP)
		ones, _ := n.Mask.Size()
		out = append(out, netip.PrefixFrom(addr.Unmap(), ones))
	}
	return out
}
