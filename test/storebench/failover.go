// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/coracle-k8s/coracle/test/storebench/load"
)

const (
	// probeEvery is how often a write is begun while there is no leader.
	probeEvery = 10 * time.Millisecond
	// failoverTime is when a failover counts as failed.
	failoverTime = 30 * time.Second
	burners      = 4
)

// failover kills leaders, one after the other.
func (b *bench) failover(ctx context.Context, voters int) error {
	return b.eachSystem(ctx, voters, func(c *cluster) error {
		return b.killLeaders(ctx, c, "kill -9 of the leader to next write on another server", pick(b, 20, 3))
	})
}

// eachSystem calls f with a new cluster of each system.
func (b *bench) eachSystem(ctx context.Context, voters int, f func(*cluster) error) error {
	for _, sys := range b.systems {
		c, err := b.newCluster(ctx, sys, voters)
		if err == nil {
			err = f(c)
			c.close()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", sys.name(), err)
		}
	}
	return nil
}

func (b *bench) killLeaders(ctx context.Context, c *cluster, name string, times int) error {
	var all []float64
	for range times {
		if time.Since(b.began) > b.limit {
			break
		}
		took, err := c.failover(ctx)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, c.logs())
		}
		all = append(all, ms(took))
	}
	if len(all) == 0 {
		return errors.New("time is over")
	}
	name = fmt.Sprintf("%s (%d times)", name, len(all))
	for _, one := range all {
		b.report.add(c.sys, name, "p50 ms", one)
	}
	b.report.add(c.sys, name, "max ms", slices.Max(all))
	return nil
}

// failover kills the leader, measures until a write that was begun afterwards
// on another server is acknowledged, and starts the killed one again.
//
// A write is begun every few milliseconds, whatever became of the others: a
// store may lose or hold up what it was given while it had no leader.
func (c *cluster) failover(ctx context.Context) (time.Duration, error) {
	leader, survivor, err := c.leaderAndFollower(ctx)
	if err != nil {
		return 0, err
	}
	// For both alike: a connection that is in use, on a cluster at rest.
	writes := load.Spec{
		Kind: load.APIWrite, Clients: 1, For: 300 * time.Millisecond, ValueBytes: valueBytes, Keys: 10, Prefix: prefix,
	}
	if _, err := survivor.remote(ctx, writes); err != nil {
		return 0, err
	}
	trying, cancel := context.WithTimeout(ctx, failoverTime)
	defer cancel()
	client := survivor.connections[0]
	acknowledged := make(chan time.Time, 1) // the first one
	var all sync.WaitGroup
	began := time.Now()
	go leader.process.Kill()
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	var took time.Duration
	for took == 0 && trying.Err() == nil {
		all.Go(func() {
			if _, err := client.Put(trying, prefix+"failover", "x"); err == nil {
				select {
				case acknowledged <- time.Now():
				default:
				}
			}
		})
		select {
		case at := <-acknowledged:
			took = at.Sub(began)
		case <-tick.C:
		}
	}
	cancel()
	all.Wait()
	<-leader.process.Done
	if took == 0 {
		return 0, fmt.Errorf("%s accepted no write within %s", c.sys.name(), failoverTime)
	}
	for _, conn := range leader.connections {
		_ = conn.Close()
	}
	leader.connections = nil
	if err := c.start(leader); err != nil {
		return 0, err
	}
	return took, c.healthy(ctx)
}

// starved measures whether leaders last while other processes take the
// processor, and how long a failover takes then.
func (b *bench) starved(ctx context.Context, voters int) error {
	return b.eachSystem(ctx, voters, func(c *cluster) error { return b.starve(ctx, c) })
}

func (b *bench) starve(ctx context.Context, c *cluster) error {
	stop, err := startBurners(burners, 3*time.Minute)
	if err != nil {
		return err
	}
	defer stop()
	for _, x := range []struct {
		clients int
		window  time.Duration
	}{{1, pick(b, time.Minute, 5*time.Second)}, {128, pick(b, 30*time.Second, 5*time.Second)}} {
		changes, err := c.watchTerms(ctx, x.clients, x.window)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%.0f s beside %d busy processes, %s writing", x.window.Seconds(), burners, count(x.clients, "client"))
		b.report.add(c.sys, name, "new terms", float64(changes))
	}
	return b.killLeaders(ctx, c, fmt.Sprintf("the same kill beside %d busy processes", burners), pick(b, 5, 2))
}

// watchTerms counts the terms that begin within a time in which clients write
// through a follower.
func (c *cluster) watchTerms(ctx context.Context, clients int, window time.Duration) (uint64, error) {
	_, follower, err := c.leaderAndFollower(ctx)
	if err != nil {
		return 0, err
	}
	before, err := c.term(ctx)
	if err != nil {
		return 0, err
	}
	_, err = follower.remote(ctx, load.Spec{
		Kind: load.APIWrite, Clients: clients, For: window, ValueBytes: valueBytes, Keys: 1000, Prefix: prefix,
	})
	if err != nil {
		return 0, err
	}
	after, err := c.term(ctx)
	return after - before, err
}

// term is the newest raft term that any server knows.
func (c *cluster) term(ctx context.Context) (uint64, error) {
	var newest uint64
	for _, s := range c.servers {
		st, err := s.status(ctx)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", s.name, err)
		}
		newest = max(newest, st.RaftTerm)
	}
	return newest, nil
}

// startBurners starts processes that only compute. They end by themselves
// after a while, whatever happens.
func startBurners(n int, most time.Duration) (stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var started []*exec.Cmd
	stop = func() {
		for _, c := range started {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}
	for range n {
		c := exec.Command(self, "-burn", most.String())
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := c.Start(); err != nil {
			stop()
			return nil, fmt.Errorf("start a busy process: %w", err)
		}
		started = append(started, c)
	}
	return stop, nil
}
