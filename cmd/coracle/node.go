// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/agent"
	"github.com/coracle-k8s/coracle/cmd/coracle/cli"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/embedded"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/internal/reachability"
	"github.com/coracle-k8s/coracle/localvolume"
	"github.com/coracle-k8s/coracle/server"
)

// node is what a node is built from, wherever the server is that it belongs to.
type node struct {
	machine     config.Node
	paths       config.Paths
	cluster     clusterconfig.Settings
	credentials nodecreds.Files
	// port is where other machines reach this one.
	port int
	// localPort is that of the balancer; 0 without one.
	localPort int
	// consolePort is that of the server's console; 0 without one.
	consolePort uint16
	// waitAPI returns when the API server is ready; waitServing, when set, as soon as it takes requests.
	waitAPI, waitServing func(context.Context) error
	// servers lists those to which the node keeps a connection.
	servers func() []string
	// otherWays are agent.Options'.
	otherWays func() []*rest.Config
	// answered, when set, is called each time that one of them has answered.
	answered func(server string, itself bool)
	// ended, when set, is called each time that one of them has ended the node's connection.
	ended func(server string)
	// reach finds out which other nodes this one cannot reach; gossip tells it where to look.
	reach *reachability.Watch
	// volumes are where local volumes lie on the machine.
	volumes *localvolume.Folders
	// podSubnets is called with the node's.
	podSubnets func([]netip.Prefix)
}

// ownNode is the node in the process of its server.
func ownNode(c *config.Server, settings clusterconfig.Settings, s *server.Server) (node, error) {
	files, err := s.AgentCredentials(c.Node.Name, netIPs(c.Node.IPs...))
	return node{
		servers: s.Roster().OtherAddresses, otherWays: s.APIConfigs,
		machine: c.Node, paths: c.Paths, cluster: settings, credentials: files, port: c.HTTPSPort, consolePort: portOf(c.ConsoleListen),
		waitAPI: waitFor(s, s.Ready()), waitServing: waitFor(s, s.Serving()),
	}, err
}

// waitFor waits for what a server tells, or until another server answers where the node asks.
func waitFor(s *server.Server, event <-chan struct{}) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-event:
			return nil
		case <-s.FailedOver():
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// portOf is the port of ADDRESS:PORT; 0 for an empty text.
func portOf(listen string) uint16 {
	_, port, _ := net.SplitHostPort(listen)      // the configuration has checked it
	number, _ := strconv.ParseUint(port, 10, 16) // 0 for none
	return uint16(number)
}

// toolsLatest is how long kubectl, helm and ctr wait for a node that does not become ready. A user who calls one of
// them as root does not wait: coracle kubectl unpacks what is missing.
const toolsLatest = time.Minute

// run unpacks the embedded programs and runs the node until ctx is done. Only the node needs the programs, so that a
// server starts beside the unpacking; and those that it does not need itself are unpacked when it is ready.
func (n node) run(ctx context.Context, p *cli.Process) error {
	dir, unpackRest, err := embedded.UnpackFirst(n.paths.DataDir)
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	ready := make(chan struct{})
	isReady := sync.OnceFunc(func() { close(ready) })
	var beside sync.WaitGroup
	defer beside.Wait()
	defer stop()
	beside.Go(func() {
		select {
		case <-running.Done():
			return
		case <-ready:
		case <-time.After(toolsLatest):
		}
		if err := unpackRest(); err != nil {
			p.Log.Error("kubectl, helm and ctr were not unpacked; each use of them tries it again", "error", err)
		}
	})
	// Upstream's libraries look for the programs they run (nft above all) on the PATH only.
	if err := os.Setenv("PATH", dir.Path+string(os.PathListSeparator)+os.Getenv("PATH")); err != nil {
		return fmt.Errorf("setting PATH: %w", err)
	}
	o := agent.Options{
		DataDir: n.paths.DataDir, RunDir: n.paths.RunDir, BinDir: dir.Stable,
		PauseTar: dir.File("pause.tar"), PauseImage: embedded.PauseImage,
		NodeName: n.machine.Name, NodeIPs: n.machine.IPs, ExternalIPs: n.machine.ExternalIPs, Labels: n.machine.Labels,
		KubeletKubeconfig: n.credentials.KubeletKubeconfig, NetworkKubeconfig: n.credentials.NetworkKubeconfig,
		KubeletServingCert: n.credentials.KubeletServing, KubeletServingKey: n.credentials.KubeletServing,
		ClientCAFile:  n.credentials.ClientCAFile,
		ClusterCIDRs:  n.cluster.PodCIDRs,
		ServiceCIDRs:  n.cluster.ServiceCIDRs,
		ClusterDomain: n.cluster.Domain,

		RegistriesFile: n.machine.RegistriesFile, ResolvConf: n.machine.ResolvConf,
		Snapshotter: n.machine.Snapshotter, KubeletArgs: n.machine.KubeletArgs,
		WaitAPI:     n.waitAPI,
		WaitServing: n.waitServing,
		Servers:     n.servers, OtherWays: n.otherWays, ServerAnswered: n.answered, ServerEnded: n.ended,
		NodePair: n.credentials.KubeletPair, ServerCAFile: n.credentials.ServerCAFile,
		DisablePolicies: n.cluster.NoNetworkPolicy, DisableIngress: n.cluster.NoIngress && n.cluster.NoGateway,
		DisableProxy: n.cluster.NoServiceProxy, NodePortAddresses: n.machine.NodePortAddresses,
		PodSubnets: func(subnets []netip.Prefix) {
			isReady() // only a node that is ready has them for sure
			n.podSubnets(subnets)
		},
		Reach: n.reach, Volumes: n.volumes,
		NetworkBackend: n.cluster.Backend(), NetworkInterface: n.machine.NetworkInterface, NetworkExternal: n.machine.NetworkExternal,
		ProxyMode: n.machine.ProxyMode, IPVSScheduler: n.machine.IPVSScheduler,
		ReservedAddresses: n.cluster.VIPs, Port: n.port, LocalPort: n.localPort, ConsolePort: n.consolePort,
		Logger: p.Log.Logger, Board: p.Board,
	}
	if n.machine.PauseImage != "" {
		o.PauseTar, o.PauseImage = "", n.machine.PauseImage
	}
	if n.cluster.DNS.IsValid() {
		o.ClusterDNS = []netip.Addr{n.cluster.DNS}
	}
	return agent.Run(ctx, o)
}

// newVolumes are the folders for local volumes on this machine.
func newVolumes(machine config.Node, paths config.Paths, p *cli.Process) *localvolume.Folders {
	return localvolume.New(localvolume.Options{Paths: machine.StoragePaths, Own: paths.StorageDir,
		Logger: p.Log.With("part", "local volumes")})
}

// clusterSettings are what the user of the first server said about the cluster.
func clusterSettings(c *config.Server) clusterconfig.Settings {
	s := clusterconfig.Settings{
		PodCIDRs: c.ClusterCIDRs, ServiceCIDRs: c.ServiceCIDRs, Domain: c.ClusterDomain,
		NoServiceProxy:    c.DisableKubeProxy,
		NetworkBackend:    c.NetworkBackend,
		NoNetworkPolicy:   c.Disabled(config.PartNetworkPolicy),
		NoLocalStorage:    c.Disabled(config.PartLocalStorage),
		TolerationSeconds: c.TolerationSeconds,
		NoMetrics:         c.Disabled(config.PartMetrics), NoHelm: c.Disabled(config.PartHelm),
		NoManifests: c.Disabled(config.PartManifests), NoConsole: c.Disabled(config.PartConsole),
		NoIngress: c.Disabled(config.PartIngress), NoGateway: c.Disabled(config.PartGateway),
		Balancer: clusterconfig.Balancer{Disabled: c.Disabled(config.PartServiceLB), Pool: loadbalancer.Texts(c.LBPool),
			ReservedPorts: c.LBReserved},
	}
	if !c.Disabled(config.PartDNS) {
		s.DNS = c.ClusterDNS
	}
	return s
}

// netIPs turns addresses into the form that certificates have, and so the server's options.
func netIPs(ips ...netip.Addr) []net.IP {
	out := make([]net.IP, 0, len(ips))
	for _, ip := range ips {
		out = append(out, ip.AsSlice())
	}
	return out
}
