// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/hostfirewall"
	"github.com/coracle-k8s/coracle/internal/preflight"
	"github.com/coracle-k8s/coracle/internal/resolvconf"
)

func checkCommand(a *App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "check", GroupID: groupUse, Short: "Find out whether this machine has what coracle needs", Args: noArgs,
		Long: `Checks kernel, control groups, network, ports, disk, memory and clock with the settings that a server would have
here, and says what to do about what it finds. It changes nothing. The exit code is 1 when something keeps coracle
from running.

The settings come from the configuration file and the environment, as for coracle server; and every flag of coracle server
may be given too, such as --https-listen-port (only -o means --output here, not --write-kubeconfig).`,
	}
	flags := config.RegisterFor(cmd.Flags(), config.ServerCommand, "o")
	cmd.Flags().SortFlags = false
	completeSettings(cmd, config.Table(config.ServerCommand))
	form := addOutput(cmd, "text", "json")
	cmd.RunE = run(func(cmd *cobra.Command, _ []string) error {
		c, err := config.LoadServer(a.sources(flags))
		var results []preflight.Result
		var problems config.Problems
		if !errors.As(err, &problems) {
			problems = a.serverArgProblems(c)
		}
		for _, p := range problems {
			results = append(results, preflight.Result{Name: "settings", Level: preflight.Fail, Found: p,
				Do: "correct it; coracle server --help and docs/configuration.md list the settings"})
		}
		results = append(results, preflight.Run(cmd.Context(), a.CheckHost(), needsOf(c))...)
		results = append(results, clockResults(cmd.Context(), c.Paths.AgentDir)...)
		err = form.print(cmd.OutOrStdout(), results, func(w io.Writer) error { return printChecks(w, results) })
		return failIf(slices.ContainsFunc(results, func(r preflight.Result) bool { return r.Level == preflight.Fail }), err)
	})
	return cmd
}

// Ports that cannot be configured.
const (
	kubeletPort = 10250
	dnsPort     = 10053
)

// needsOf returns the requirements of a server with these settings. The settings may be incomplete when they are wrong.
func needsOf(c *config.Server) preflight.Needs {
	n := preflight.Needs{
		DataDir: c.Paths.DataDir, NodeIPs: c.Node.IPs,
		Networks:    slices.Concat(c.Cluster.PodCIDRs, c.Cluster.ServiceCIDRs),
		Snapshotter: c.Node.Snapshotter,
		Running:     readPIDFile(c.Paths.PIDFile).alive,
		Firewall:    hostfirewall.Needs{Port: c.HTTPSPort},
	}
	n.Ports = append(n.Ports, preflight.Port{Network: "tcp", Address: c.BindAddress, Number: c.HTTPSPort, What: "the API server",
		Setting: "--https-listen-port"})
	n.Ports = append(n.Ports, preflight.Port{Network: "udp", Address: c.BindAddress, Number: c.HTTPSPort, What: "gossip",
		Setting: "--https-listen-port"})
	n.NoNFTables = len(c.VIPs) == 0 && (c.DisableAgent || c.Cluster.NetworkBackend == clusterconfig.NetworkNone && c.Cluster.NoServiceProxy)
	if c.DisableAgent {
		return n
	}
	n.ResolvConf = resolvconf.File(c.Node.ResolvConf)
	if !c.Cluster.NoServiceProxy {
		n.ProxyMode, n.IPVSScheduler, n.Pods = c.Node.ProxyMode, c.Node.IPVSScheduler, c.Cluster.PodCIDRs
	}
	n.Firewall.Pods, n.Firewall.Tunnel = c.Cluster.PodCIDRs, clusterconfig.TunnelPort(presentBackendOf(c))
	if n.Firewall.Tunnel > 0 {
		n.Ports = append(n.Ports, preflight.Port{Network: "udp", Number: n.Firewall.Tunnel, What: "packets between nodes' pods"})
	}
	n.Ports = append(n.Ports, preflight.Port{Network: "tcp", Number: kubeletPort, What: "the kubelet"})
	if !c.Cluster.Disabled.Has(clusterconfig.PartDNS) {
		var ip netip.Addr
		if len(c.Node.IPs) > 0 {
			ip = c.Node.IPs[0]
		}
		for _, network := range []string{"tcp", "udp"} {
			n.Ports = append(n.Ports, preflight.Port{Network: network, Address: ip, Number: dnsPort, What: "cluster DNS"})
		}
	}
	if !c.Cluster.Disabled.Has(clusterconfig.PartIngress) && !c.Cluster.NoServiceProxy {
		n.Ingress = []int{table.HTTPPort, table.HTTPSPort}
	}
	return n
}

// presentBackendOf returns the network back end that a server with these settings would have. The back end to which its
// cluster has changed takes precedence over the setting.
func presentBackendOf(c *config.Server) string {
	if c.Cluster.NetworkBackend == clusterconfig.NetworkNone { // another plugin makes the pod network
		return clusterconfig.NetworkNone
	}
	return cmp.Or(KnownBackend(c.Paths.ServerDir, c.Paths.AgentDir), c.Cluster.NetworkBackend)
}

func printChecks(w io.Writer, results []preflight.Result) error {
	var b strings.Builder
	width, count := 0, map[preflight.Level]int{}
	for _, r := range results {
		width = max(width, len(r.Name))
		count[r.Level]++
	}
	for _, r := range results {
		fmt.Fprintf(&b, "%-4s  %-*s  %s\n", r.Level, width, r.Name, r.Found)
		if r.Do != "" {
			fmt.Fprintf(&b, "      %-*s  → %s\n", width, "", r.Do)
		}
	}
	switch {
	case count[preflight.Fail] > 0:
		fmt.Fprintf(&b, "\nCoracle cannot run here yet: %d to fix, %d to check.\n", count[preflight.Fail], count[preflight.Warn])
	case count[preflight.Warn] > 0:
		fmt.Fprintf(&b, "\nCoracle runs here; %d to check.\n", count[preflight.Warn])
	default:
		b.WriteString("\nCoracle runs here.\n")
	}
	return printText(w, b.String())
}
