// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-k8s/coracle/agent"
	"github.com/coracle-k8s/coracle/agent/balancer"
	"github.com/coracle-k8s/coracle/cmd/coracle/cli"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/filewatch"
	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/internal/reachability"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/supervise"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/internal/version"
	joiningnode "github.com/coracle-k8s/coracle/joining/node"
)

const (
	// apiPoll is how often an API server that does not answer yet is asked whether it does.
	apiPoll = 500 * time.Millisecond
	// agentSlack is how late an agent's timers may be on a processor that has nothing else to do. Half as many threads
	// wake up by it; with 20 ms pods start visibly later (docs/adr/0040). Servers keep the kernel's slack: their times
	// decide how soon a dead leader is missed.
	agentSlack = 5 * time.Millisecond
	// apiPatience bounds one such question.
	apiPatience = 5 * time.Second
)

// runAgent runs a node of a cluster whose servers are elsewhere, until the machine has another address at the latest.
func runAgent(ctx context.Context, c *config.Agent, p *cli.Process) error {
	if err := timers.Set(agentSlack); err != nil {
		p.Log.Info("timers wake this node one by one; at rest it uses a little more of the processor", "error", err)
	}
	filewatch.RaiseLimits(p.Log.Logger)
	return withAddresses(ctx, c.Node, nil, p, func(ctx context.Context, stopAll context.CancelCauseFunc) error {
		return joinAndRun(ctx, stopAll, c, p)
	})
}

// openBalancer takes the local address of the API as soon as it can be had: another program may have its port.
func openBalancer(ctx context.Context, board *status.Board, o balancer.Options) (servers *balancer.Balancer, err error) {
	open := func(ctx context.Context) error {
		servers, err = balancer.New(ctx, o)
		return err
	}
	supervise.Run(ctx, supervise.Part{Name: "local address of the API", Run: open, Board: board, Logger: o.Logger, Quiet: true})
	return servers, err
}

// startBalancing runs the balancer until the function that it returns is called, which waits for its end. The end of
// ctx does not stop it: the node's parts still have something to say when they stop.
func startBalancing(ctx context.Context, servers *balancer.Balancer) (stop func() error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1) // one: it may end before anybody listens
	go func() { ended <- servers.Run(ctx) }()
	return func() error {
		cancel()
		return <-ended
	}
}

// joinAndRun joins the cluster of a server elsewhere and runs this machine's node.
func joinAndRun(ctx context.Context, stopAll context.CancelCauseFunc, c *config.Agent, p *cli.Process) (err error) {
	start, idle, busy := fitMemory(p)
	keepName, err := nameNode(&c.Node, c.Paths, p.Log.Logger)
	if err != nil {
		return err
	}
	local := net.JoinHostPort("127.0.0.1", strconv.Itoa(c.LocalPort))
	port, err := openAgentPort(ctx, c.Port, p.Log.Logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, port.close()) }()
	servers, err := openBalancer(ctx, p.Board, balancer.Options{
		Address: local, File: filepath.Join(c.Paths.AgentDir, "servers.json"), Server: c.ServerURL.Host, Logger: p.Log.Logger,
		ServerCAFile: nodecreds.In(filepath.Join(c.Paths.AgentDir, "cred")).ServerCAFile, // there since the machine joined
	})
	if err != nil {
		return err
	}
	stopBalancing := startBalancing(ctx, servers)
	defer func() { err = errors.Join(err, stopBalancing()) }()
	f := &finder{c: c, port: port, servers: servers, log: p.Log.Logger, line: p.Board.Part("gossip")}
	joined, err := joiningnode.Join(ctx, joiningnode.Options{
		Dir: filepath.Join(c.Paths.AgentDir, "cred"), StateDir: c.Paths.AgentDir,
		Server: c.ServerURL, Others: f.others, Search: f.search, API: "https://" + local, Token: c.Token, NodeName: c.Node.Name,
		Addresses: c.Node.IPs, External: c.Node.ExternalIPs,
		Program: version.Get().Coracle, Logger: p.Log.Logger,
	})
	if err != nil {
		return err
	}
	if err := keepName(); err != nil {
		return err
	}
	if err := checkProxyMode(c.Node, joined.Settings, agent.MissingForIPVS); err != nil {
		return err
	}
	member := &agentMember{
		c: c, port: port, joined: joined, servers: servers, log: p.Log.With("part", "gossip"), line: p.Board.Part("gossip"),
		subnets: make(chan []netip.Prefix, 1), show: p.Admin.SetMembers,
		reach: reachability.New(reachability.Options{Logger: p.Log.Logger}),
	}
	if joined.ReachedAtStart() {
		member.keysReceived = time.Now()
	}
	ready := make(chan struct{})
	n := node{
		machine: c.Node, paths: c.Paths, cluster: joined.Settings, credentials: joined.Credentials, servers: servers.Servers,
		otherWays: directWays(joined.Credentials.KubeletKubeconfig, local, servers.Servers),
		answered:  servers.Replied, ended: servers.Ended, port: c.Port, localPort: c.LocalPort,
		waitAPI: func(ctx context.Context) error {
			err := waitAPI(ctx, joined.Credentials.KubeletKubeconfig)
			if err == nil {
				close(ready)
			}
			return err
		},
		reach:      member.reach,
		volumes:    newVolumes(c.Node, c.Paths, p),
		podSubnets: func(subnets []netip.Prefix) { member.subnets <- subnets },
	}
	catchFatal(stopAll)
	pacer := pace(start, idle, busy)
	beside := supervise.NewGroup(ctx, p.Board, p.Log.Logger)
	beside.Go(member.run)
	beside.Go(func(ctx context.Context) { announce(ctx, p, ready, pacer) })
	beside.Go(func(ctx context.Context) { _ = joined.Run(ctx) }) // it says itself what it cannot renew
	beside.Quiet("connections for the servers", func(ctx context.Context) error { return servers.Forward(ctx, port.mux.Default()) })
	beside.Quiet("list of servers", func(ctx context.Context) error { return servers.Follow(ctx, joined.Credentials.NetworkKubeconfig) })
	nodeErr := n.run(ctx, p)
	stopAll(nodeErr)
	if err := beside.Wait(); err != nil {
		return err
	}
	return nodeErr
}

// directWays are ways to the API with the node's credentials and without the balancer's local address, whose name the
// servers' certificates have beside their own.
func directWays(kubeconfig, local string, servers func() []string) func() []*rest.Config {
	return func() (ways []*rest.Config) {
		for _, s := range servers() {
			c, err := clientcmd.BuildConfigFromFlags("https://"+s, kubeconfig)
			if err != nil {
				continue // the kubelet reports the same
			}
			c.ServerName, _, _ = net.SplitHostPort(local)
			ways = append(ways, c)
		}
		return ways
	}
}

// waitAPI returns when the API server answers that it is ready.
func waitAPI(ctx context.Context, kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("reading the node's credentials: %w", err)
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return fmt.Errorf("making a client for the API server: %w", err)
	}
	defer client.CloseIdleConnections()
	client.Timeout = apiPatience
	for {
		if responds(ctx, client, config.Host+"/readyz") {
			return nil
		}
		if !timers.Sleep(ctx, apiPoll) {
			return ctx.Err()
		}
	}
}

func responds(ctx context.Context, client *http.Client, url string) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	answer, err := client.Do(request)
	if err != nil {
		return false
	}
	_ = answer.Body.Close() // it was not read
	return answer.StatusCode == http.StatusOK
}
