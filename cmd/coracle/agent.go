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
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/coracle-k8s/coracle/agent"
	"github.com/coracle-k8s/coracle/agent/balancer"
	"github.com/coracle-k8s/coracle/cmd/coracle/cli"
	"github.com/coracle-k8s/coracle/content"
	"github.com/coracle-k8s/coracle/internal/certend"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/connlimit"
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
	// apiPoll is the pause between two checks whether the API server is ready.
	apiPoll = 500 * time.Millisecond
	// agentSlack is how late an agent's timers may fire on a processor that is idle. It halves the number of threads
	// that wake up. With 20 ms, pods start noticeably later (docs/adr/0040). Servers keep the kernel's slack: their
	// timers determine how soon a dead leader is detected.
	agentSlack = 5 * time.Millisecond
	// apiTimeout is the timeout of one such check.
	apiTimeout = 5 * time.Second
	// anotherAfter is how long the server in use may not be ready at this node's start until another one is used. An
	// election takes a second or two.
	anotherAfter = 3 * time.Second
)

// runAgent runs a node of a cluster whose servers are other machines, until ctx is done or the machine has another
// address.
func runAgent(ctx context.Context, c *config.Agent, p *cli.Process) error {
	if err := timers.Set(agentSlack); err != nil {
		p.Log.Info("timers could not be aligned; this node uses slightly more CPU when idle", "error", err)
	}
	filewatch.RaiseLimits(p.Log.Logger)
	return withAddresses(ctx, c.Node, nil, p, func(ctx context.Context, stopAll context.CancelCauseFunc) error {
		return joinAndRun(ctx, stopAll, c, p)
	})
}

// openBalancer opens the local address of the API. It tries again until that succeeds: another program may have the
// port.
func openBalancer(ctx context.Context, board *status.Board, o balancer.Options) (servers *balancer.Balancer, err error) {
	open := func(ctx context.Context) error {
		servers, err = balancer.New(ctx, o)
		return err
	}
	supervise.Run(ctx, supervise.Part{Name: "local address of the API", Run: open, Board: board, Logger: o.Logger, Quiet: true})
	return servers, err
}

// startBalancing runs the balancer until the returned function is called, which waits for the balancer's end. It does
// not stop when ctx is done, because the node's parts still send requests when they stop.
func startBalancing(ctx context.Context, servers *balancer.Balancer) (stop func() error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1) // one: it may end before anything receives
	go func() { ended <- servers.Run(ctx) }()
	return func() error {
		cancel()
		return <-ended
	}
}

// joinAndRun joins the cluster of a server on another machine and runs this machine's node.
func joinAndRun(ctx context.Context, stopAll context.CancelCauseFunc, c *config.Agent, p *cli.Process) (err error) {
	shutdown := agent.NewShutdown()
	serveStopPods(p, shutdown, c.Node)
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
		Address: local, File: filepath.Join(c.Paths.AgentDir, "servers.json"), Server: c.ServerURL.Host,
		Part: p.Board.Part("servers"), Logger: p.Log.Logger,
		ServerCAFile: nodecreds.In(filepath.Join(c.Paths.AgentDir, "cred")).ServerCAFile, // the file exists since the machine joined
	})
	if err != nil {
		return err
	}
	stopBalancing := startBalancing(ctx, servers)
	defer func() { err = errors.Join(err, stopBalancing()) }()
	f := &finder{c: c, port: port, servers: servers, log: p.Log.Logger, line: p.Board.Part("gossip")}
	joined, err := joinCluster(ctx, stopAll, f, local, p)
	if err != nil {
		return err
	}
	_ = legacyregistry.Registerer().Register(certend.Collector(joined.Certificates)) // the kubelet serves them; a process has one node
	_ = legacyregistry.Registerer().Register(connlimit.Metrics{})                    // the same
	if err := keepName(); err != nil {
		return err
	}
	if err := checkProxyMode(c.Node, joined.Settings, agent.MissingForIPVS); err != nil {
		return err
	}
	member := &agentMember{
		c: c, port: port, joined: joined, servers: servers, log: p.Log.With("part", "gossip"), line: p.Board.Part("gossip"),
		subnets: make(chan []netip.Prefix, 1), showMembers: p.Admin.SetMembers, showLevel: p.Admin.SetLevel,
		reach: reachability.New(reachability.Options{Logger: p.Log.Logger}), level: joined.Level,
	}
	if joined.ReachedAtStart() {
		member.keysReceived = time.Now()
	}
	sharing, err := member.content()
	if err != nil {
		return err
	}
	p.Admin.SetContent(func() *status.Content { return statusContent(sharing) })
	ready := make(chan struct{})
	n := node{
		content: sharing,
		machine: c.Node, paths: c.Paths, cluster: joined.Settings, credentials: joined.Credentials, servers: servers.Servers,
		fallbackConfigs: directConfigs(joined.Credentials.KubeletKubeconfig, local, servers.Servers),
		answered:        servers.Replied, onEnded: servers.Ended, readiness: servers.SetReadiness, port: c.Port, localPort: c.LocalPort,
		waitAPI: func(ctx context.Context) error {
			err := waitAPI(ctx, joined.Credentials.KubeletKubeconfig, servers.UseAnother)
			if err == nil {
				close(ready)
			}
			return err
		},
		reach:      member.reach,
		shutdown:   shutdown,
		volumes:    newVolumes(c.Node, c.Paths, p),
		podSubnets: func(subnets []netip.Prefix) { member.subnets <- subnets },
	}
	catchFatal(stopAll)
	pacer := newPacer(start, idle, busy)
	beside := supervise.NewGroup(ctx, p.Board, p.Log.Logger)
	beside.Go(member.run)
	if sharing != nil {
		_ = legacyregistry.Registerer().Register(&sharing.Counters) // the kubelet serves them; a process has one node
		beside.Quiet("content", func(ctx context.Context) error { return sharing.Run(ctx, port.mux.Route(content.ALPN)) })
	}
	beside.Go(func(ctx context.Context) { announce(ctx, p, ready, pacer) })
	beside.Go(func(ctx context.Context) { _ = joined.Run(ctx) }) // it logs itself what it cannot renew
	beside.Quiet("connections for the servers", func(ctx context.Context) error { return servers.Forward(ctx, port.mux.Default()) })
	beside.Quiet("list of servers", func(ctx context.Context) error { return servers.Follow(ctx, joined.Credentials.NetworkKubeconfig) })
	nodeErr := n.run(ctx, p)
	stopAll(nodeErr)
	if err := beside.Wait(); err != nil {
		return err
	}
	return nodeErr
}

// joinCluster joins the cluster of the servers that f finds, or learns what an earlier start has kept of it, and makes
// this process the Kubernetes of the cluster's level. local is the address of the API on this machine.
func joinCluster(ctx context.Context, stopAll context.CancelCauseFunc, f *finder, local string, p *cli.Process) (*joiningnode.Node, error) {
	c := f.c
	joined, err := joiningnode.Join(ctx, joiningnode.Options{
		Dir: filepath.Join(c.Paths.AgentDir, "cred"), StateDir: c.Paths.AgentDir,
		Server: c.ServerURL, Others: f.otherMachines, Search: f.search, API: "https://" + local, Token: c.Token, NodeName: c.Node.Name,
		Addresses: c.Node.IPs, External: c.Node.ExternalIPs,
		Program: version.Get().Coracle, Part: p.Board.Part("certificates"), Logger: p.Log.Logger,
		Restart: func() {
			stopAll(cli.ErrRestart)
			time.AfterFunc(stopTimeout, p.Restart)
		},
	})
	if err != nil {
		return nil, err
	}
	if err := emulate(joined.Level); err != nil {
		return nil, err
	}
	running := joined.Level // a server may tell another one later on
	p.Admin.SetLevel(func() *status.Level { return agentLevel(running, nil) })
	return joined, nil
}

// directConfigs returns client configurations for the API servers with the node's credentials. They do not use the
// balancer's local address. The server's certificate is checked for the name of that address, which every server's
// certificate has.
func directConfigs(kubeconfig, local string, servers func() []string) func() []*rest.Config {
	return func() (ways []*rest.Config) {
		for _, s := range servers() {
			c, err := clientcmd.BuildConfigFromFlags("https://"+s, kubeconfig)
			if err != nil {
				continue // the kubelet reports the same error
			}
			c.ServerName, _, _ = net.SplitHostPort(local)
			ways = append(ways, c)
		}
		return ways
	}
}

// waitAPI returns when the API server is ready. useAnother is called when it has not been for anotherAfter, and again
// after as long.
func waitAPI(ctx context.Context, kubeconfig string, useAnother func(context.Context)) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("reading the node's credentials: %w", err)
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return fmt.Errorf("making a client for the API server: %w", err)
	}
	defer client.CloseIdleConnections()
	client.Timeout = apiTimeout
	for began := time.Now(); ; {
		if answersHTTP(ctx, client, config.Host+"/readyz") {
			return nil
		}
		if time.Since(began) >= anotherAfter {
			useAnother(ctx)
			began = time.Now()
		}
		if !timers.Sleep(ctx, apiPoll) {
			return ctx.Err()
		}
	}
}

func answersHTTP(ctx context.Context, client *http.Client, url string) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	answer, err := client.Do(request)
	if err != nil {
		return false
	}
	_ = answer.Body.Close() // the body was not read
	return answer.StatusCode == http.StatusOK
}
