// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/agent"
	"github.com/coracle-k8s/coracle/cmd/coracle/cli"
	"github.com/coracle-k8s/coracle/content"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/embedded"
	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/internal/reachability"
	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/localvolume"
	"github.com/coracle-k8s/coracle/server"
)

// node holds what a node is built from, whether its server runs in this process or on another machine.
type node struct {
	machine     config.Node
	paths       config.Paths
	cluster     clusterconfig.Settings
	credentials nodecreds.Files
	// port is the port at which other machines reach this one.
	port int
	// localPort is the port of the load balancer on loopback, and 0 without a balancer.
	localPort int
	// consolePort is the port of the server's console, and 0 without one.
	consolePort uint16
	// waitAPI returns when the API server is ready. waitServing, when set, returns as soon as the API server accepts
	// requests.
	waitAPI, waitServing func(context.Context) error
	// servers returns the servers to which the node keeps a connection.
	servers func() []string
	// fallbackConfigs is agent.Options.FallbackConfigs.
	fallbackConfigs func() []*rest.Config
	// answered, when set, is called each time that one of the servers has answered.
	answered func(server string, itself bool)
	// onEnded, when set, is called each time that one of the servers has ended the node's connection.
	onEnded func(server string)
	// readiness, when set, is called when one of the servers reports whether it is ready.
	readiness func(server, reason string)
	// reach determines which other nodes this one cannot reach. Gossip reports which of them to probe.
	reach *reachability.Watch
	// volumes are the folders for local volumes on the machine.
	volumes *localvolume.Folders
	// shutdown stops the node's pods when the machine goes down.
	shutdown *agent.Shutdown
	// content is the machine's part in sharing images' content. It may be nil.
	content *content.Machine
	// failed, when set, is why the node cannot run.
	failed error
	// podSubnets is called with the node's pod subnets.
	podSubnets func([]netip.Prefix)
}

// ownNode returns the node that runs in the process of its server.
func ownNode(c *config.Server, settings clusterconfig.Settings, s *server.Server) (node, error) {
	files, err := s.AgentCredentials(c.Node.Name, c.Node.IPs)
	return node{
		servers: s.Roster().OtherAddresses, fallbackConfigs: s.APIConfigs,
		machine: c.Node, paths: c.Paths, cluster: settings, credentials: files, port: c.HTTPSPort, consolePort: portOf(c.ConsoleListen),
		waitAPI: waitFor(s, s.Ready()), waitServing: waitFor(s, s.Serving()), content: s.Content,
	}, err
}

// waitFor returns a function that waits for an event of the server, or until the node's requests fail over to another
// server.
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

// portOf returns the port of ADDRESS:PORT, and 0 for an empty text.
func portOf(listen string) uint16 {
	_, port, _ := net.SplitHostPort(listen)      // the configuration has checked it
	number, _ := strconv.ParseUint(port, 10, 16) // 0 for none
	return uint16(number)
}

// run unpacks the embedded programs and runs the node until ctx is done. Only the node needs the programs, so a server
// starts while they are unpacked.
func (n node) run(ctx context.Context, p *cli.Process) error {
	if n.failed != nil {
		return n.failed
	}
	dir, err := embedded.Unpack(n.paths.DataDir)
	if err != nil {
		return err
	}
	// Upstream's libraries find the programs that they run (nft above all) only on the PATH.
	if err := os.Setenv("PATH", dir.Path+string(os.PathListSeparator)+os.Getenv("PATH")); err != nil {
		return fmt.Errorf("setting PATH: %w", err)
	}
	return agent.Run(ctx, n.options(dir, p))
}

func (n node) options(dir embedded.Dir, p *cli.Process) agent.Options {
	o := agent.Options{
		DataDir: n.paths.DataDir, RunDir: n.paths.RunDir, BinDir: dir.Stable, Node: n.machine, Cluster: n.cluster,
		KubeletKubeconfig: n.credentials.KubeletKubeconfig, NetworkKubeconfig: n.credentials.NetworkKubeconfig,
		KubeletServingCert: n.credentials.KubeletServing, KubeletServingKey: n.credentials.KubeletServing,
		ClientCAFile: n.credentials.ClientCAFile, NodePair: n.credentials.KubeletPair, ServerCAFile: n.credentials.ServerCAFile,
		WaitAPI: n.waitAPI, WaitServing: n.waitServing,
		Servers: n.servers, FallbackConfigs: n.fallbackConfigs, ServerAnswered: n.answered, ServerEnded: n.onEnded,
		ServerReadiness: n.readiness,
		PodSubnets:      n.podSubnets, Reach: n.reach, Volumes: n.volumes, Shutdown: n.shutdown,
		Port: n.port, LocalPort: n.localPort, ConsolePort: n.consolePort,
		Logger: p.Log.Logger, Board: p.Board,
		FailedShims: p.Admin.SetFailedShims, Content: n.content, ImageNotes: p.Admin.SetImageNotes,
	}
	if v, digest, ok := slots.Own(); ok {
		o.KubeletCopies = v.Slot(digest, slots.KubeletFolder)
	}
	if o.PauseImage == "" {
		o.PauseTar, o.PauseImage = dir.File("pause.tar"), embedded.PauseImage
	}
	return o
}

func newVolumes(machine config.Node, paths config.Paths, p *cli.Process) *localvolume.Folders {
	return localvolume.New(localvolume.Options{Paths: machine.StoragePaths, Own: paths.StorageDir,
		Logger: p.Log.With("part", "local volumes")})
}
