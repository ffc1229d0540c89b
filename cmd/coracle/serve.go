// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/coracle-k8s/coracle/agent"
	"github.com/coracle-k8s/coracle/cmd/coracle/cli"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/filewatch"
	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/internal/memory"
	"github.com/coracle-k8s/coracle/internal/reachability"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/supervise"
	"github.com/coracle-k8s/coracle/internal/version"
	"github.com/coracle-k8s/coracle/server"
	"github.com/coracle-k8s/coracle/server/snapshots"
	"github.com/coracle-k8s/coracle/vip"
)

const (
	// smallMachine is the number of cores up to which fewer workers run at the same time.
	smallMachine = 4
	// settleTime is how long after readiness the memory that only the start needed is given back. By then the first
	// lists and watches are complete.
	settleTime = 20 * time.Second
	// trimEvery is how often memory is given back later on. That takes some milliseconds, and pages in use return at
	// once.
	trimEvery = 5 * time.Minute
)

// runServer runs a server until ctx is done or the machine has another address.
func runServer(ctx context.Context, c *config.Server, p *cli.Process) error {
	filewatch.RaiseLimits(p.Log.Logger)
	return withAddresses(ctx, c.Node, slices.Concat(c.Cluster.PodCIDRs, c.Cluster.ServiceCIDRs), p,
		func(ctx context.Context, stopAll context.CancelCauseFunc) error {
			return serve(ctx, stopAll, c, p)
		})
}

// serve runs a server, and the node on the same machine unless that is disabled. The node's parts start while the API
// server starts, and stop before it stops, so that their last requests are served. A node that fails ends nothing else.
func serve(ctx context.Context, stopAll context.CancelCauseFunc, c *config.Server, p *cli.Process) error {
	start, idle, busy := fitMemory(p)
	var nodeIsOff atomic.Bool
	var shutdown *agent.Shutdown
	if !c.DisableAgent {
		shutdown = agent.NewShutdown()
	}
	serveStopPods(p, shutdown, c.Node)
	keepName := func() error { return nil }
	if !c.DisableAgent {
		var err error
		if keepName, err = nameNode(&c.Node, c.Paths, p.Log.Logger); err != nil {
			return err
		}
	}
	pacer := newPacer(start, idle, busy)
	o := serverOptions(c)
	o.WorkEnded = pacer.Ended
	o.Board, o.Logger = p.Board, p.Log.Logger
	if !c.DisableAgent {
		o.Reach = reachability.New(reachability.Options{Logger: p.Log.Logger})
		o.Volumes = newVolumes(c.Node, c.Paths, p)
		o.NodeIsOff = nodeIsOff.Load
	}
	o, err := joinedOptions(ctx, o)
	if err != nil {
		return err
	}
	if level.Known(o.Level) { // server.New refuses another one, and says what to do
		if err := emulate(o.Level); err != nil {
			return err
		}
	}
	if err := checkVIPs(ctx, o); err != nil {
		return err
	}
	if !c.DisableAgent {
		if err := checkProxyMode(c.Node, o.Cluster, agent.MissingForIPVS); err != nil {
			return err
		}
	}
	s, err := server.New(ctx, o)
	if err != nil {
		return err
	}
	p.Admin.Handle(snapshots.Path, s.SnapshotsHandler())
	p.Admin.Handle(snapshots.Path+"/", s.SnapshotsHandler())
	p.Admin.Handle("GET "+status.ServersPath, status.JSONHandler(s.Roster().Report))
	p.Admin.Handle("GET "+status.UsagePath, server.StoreUsageHandler(s))
	members := func() []status.Member { return statusMembers(s.Gossip().Members()) }
	p.Admin.SetMembers(members)
	p.Admin.SetContent(func() *status.Content { return statusContent(s.Content) })
	p.Admin.SetLevel(func() *status.Level { return s.Levels().Report(members()) })
	p.Admin.Handle("POST "+status.RaisePath, s.Levels().Handler(members))
	runNode := func(context.Context) {}
	if !c.DisableAgent {
		n, err := ownNode(c, o.Cluster, s)
		n.reach, n.volumes, n.shutdown = o.Reach, o.Volumes, shutdown
		n.podSubnets = func(subnets []netip.Prefix) { s.Gossip().SetPodSubnets(ctx, subnets) }
		if err == nil {
			err = keepName()
		}
		n.failed = err // such as a folder that cannot be written: the server serves
		runNode = besideServer(n, s, &nodeIsOff, stopAll, p)
	}
	catchFatal(stopAll)
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	serverDone := make(chan struct{})
	go func() {
		defer close(serverDone)
		stopAll(s.Run(serving))
	}()
	beside := supervise.NewGroup(ctx, p.Board, p.Log.Logger)
	beside.Go(func(ctx context.Context) { announce(ctx, p, s.Ready(), pacer) })
	runNode(ctx)
	<-ctx.Done() // without a node, the server runs until ctx is done
	stopServing()
	<-serverDone
	stopAll(nil)
	return beside.Wait()
}

// fitMemory adapts the process to the memory that it may use. It returns the values of GOGC for a start, for rest and
// for work.
func fitMemory(p *cli.Process) (start, idle, busy int) {
	l, err := memory.Self()
	if err == nil {
		err = memory.Fit(l)
	}
	if err != nil {
		p.Log.Warn("the process could not be adapted to the available memory", "error", err)
	}
	if memory.Tight(l) {
		return gcPercentTight, gcPercentTight, gcPercentTightBusy
	}
	return gcPercentStart, gcPercent, gcPercentBusy
}

// newPacer returns a pacer that adapts garbage collection to the load. It returns nil when the environment sets GOGC.
func newPacer(start, idle, busy int) *memory.Pacer {
	if os.Getenv("GOGC") != "" {
		return nil
	}
	return memory.NewPacer(start, idle, busy, time.Now)
}

// announce reports that the process is ready once it is. From then on it gives back memory that only the start, or a
// burst of work, needed.
func announce(ctx context.Context, p *cli.Process, ready <-chan struct{}, pacer *memory.Pacer) {
	select {
	case <-ready:
		p.Ready()
	case <-ctx.Done():
		return
	}
	// At rest, Go has collected since the pools were last used. That saves one collection in five minutes.
	for pause, pools := settleTime, true; ; pause, pools = trimEvery, false {
		select {
		case <-time.After(pause):
		case <-pacer.BurstEnded():
			pools = true
		case <-ctx.Done():
			return
		}
		pacer.Rest()
		if err := memory.Trim(pools); err != nil {
			p.Log.Warn("unused memory was not returned to the kernel", "error", err)
			return
		}
	}
}

func serverOptions(c *config.Server) server.Options {
	v := version.Get()
	o := server.Options{
		Server: *c, GivenBackend: givenBackend(c), Redirect: vip.SetRedirects, Links: config.LocalHost{}.Links,
		HelmProgram: "/proc/self/exe", Small: runtime.NumCPU() <= smallMachine, Version: v.Coracle,
	}
	if t, err := time.Parse(time.RFC3339, v.Date); err == nil {
		o.BuildTime = t
	}
	return o
}

// checkServerArgs returns an error for mistakes in the arguments for API server, controllers and scheduler.
func checkServerArgs(c *config.Server) error {
	o := serverOptions(c)
	return o.CheckArgs()
}
