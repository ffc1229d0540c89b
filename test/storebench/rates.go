// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/coracle-k8s/coracle/test/storebench/load"
)

const (
	valueBytes = 1 << 10
	// readKeys is how many objects are there to be read.
	readKeys = 10_000
	prefix   = "/registry/bench/"
	// readPrefix is theirs alone: a list counts all keys of its range.
	readPrefix = "/registry/objects/"
)

// cell is one measurement of rates.
type cell struct {
	name   string
	unit   string
	spec   load.Spec
	writes bool
}

// variant is a way to ask our store; etcd's only one is compared with each.
type variant struct {
	name   string
	native bool
}

var variants = []variant{{"native", true}, {"gRPC", false}}

// cells lists what is measured on one server.
func (b *bench) cells() []cell {
	var all []cell
	warmup := pick(b, 400*time.Millisecond, 150*time.Millisecond)
	add := func(c cell, kind load.Kind, clients int, of time.Duration) {
		c.spec = load.Spec{
			Kind: kind, Clients: clients, For: of, Warmup: warmup, ValueBytes: valueBytes, Prefix: prefix,
			Keys: readKeys, ReadPrefix: readPrefix,
		}
		all = append(all, c)
	}
	for _, clients := range []int{1, 16, 128} {
		writes := cell{name: "API server's writes", unit: "puts/s", writes: true}
		add(writes, load.APIWrite, clients, pick(b, 2500*time.Millisecond, 500*time.Millisecond))
	}
	for _, clients := range []int{1, 16, 128} {
		gets := cell{name: "linearizable gets", unit: "gets/s"}
		add(gets, load.Get, clients, pick(b, 1500*time.Millisecond, 300*time.Millisecond))
	}
	return all
}

// rates measures all cells, in turns on ours and on etcd.
func (b *bench) rates(ctx context.Context, voters int) error {
	for round := range b.rounds {
		if round > 0 && time.Since(b.began) > b.limit {
			fmt.Printf("rates, %s: time is over after %d of %d rounds\n", count(voters, "voter"), round, b.rounds)
			return nil
		}
		if _, err := b.device.probe(); err != nil {
			return err
		}
		fmt.Printf("rates, %s, round %d of %d: %s\n", count(voters, "voter"), round+1, b.rounds, b.device)
		for _, sys := range b.systems {
			if err := b.ratesOf(ctx, sys, voters); err != nil {
				return fmt.Errorf("%s: %w", sys.name(), err)
			}
		}
	}
	return nil
}

func (b *bench) ratesOf(ctx context.Context, sys system, voters int) error {
	c, err := b.newCluster(ctx, sys, voters)
	if err != nil {
		return err
	}
	defer c.close()
	leader, follower, err := c.leaderAndFollower(ctx)
	if err != nil {
		return err
	}
	if err := fill(ctx, leader, readKeys, readPrefix); err != nil {
		return err
	}
	if follower == nil {
		return b.measureAll(ctx, c, leader, b.cells(), "")
	}
	if err := b.measureAll(ctx, c, leader, b.cells(), ", leader"); err != nil {
		return err
	}
	if _, follower, err = c.leaderAndFollower(ctx); err != nil {
		return err
	}
	return b.measureAll(ctx, c, follower, b.cells(), ", follower")
}

// measureAll runs cells on one server. Should leadership move meanwhile, the
// figures still count, and that it did is said.
func (b *bench) measureAll(ctx context.Context, c *cluster, s *server, cells []cell, where string) error {
	term, err := c.term(ctx)
	if err != nil {
		return err
	}
	for _, x := range cells {
		if err := b.measure(ctx, s, x, len(c.servers), where); err != nil {
			return fmt.Errorf("%w\n%s", err, c.logs())
		}
		now, err := c.term(ctx)
		if err != nil {
			return err
		}
		if now != term {
			fmt.Printf("  %s%s: term %d became %d during %s, %s\n", c.sys.name(), where, term, now, x.name, count(x.spec.Clients, "client"))
			term = now
		}
	}
	return nil
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// fill creates the objects that are read later.
func fill(ctx context.Context, s *server, objects int, prefix string) error {
	_, err := s.remote(ctx, load.Spec{
		Kind: load.Fill, Clients: 64, For: 2 * time.Minute, Ops: int64(objects), Keys: objects, ValueBytes: valueBytes, ReadPrefix: prefix,
	})
	return err
}

// measure runs one cell: every variant of ours, etcd once for all of them.
func (b *bench) measure(ctx context.Context, s *server, x cell, voters int, where string) error {
	for i, v := range variants {
		_, isCoracle := s.sys.(*coracle)
		names := variants[i : i+1]
		if !isCoracle {
			if i > 0 {
				break
			}
			names = variants // etcd's figure stands beside each of ours
		}
		before, beforeErr := b.device.counters()
		result, err := runOn(ctx, s, x.spec, v)
		if err != nil {
			return err
		}
		after, _ := b.device.counters()
		for _, n := range names {
			name := fmt.Sprintf("%s%s: %s, %s, %s", count(voters, "voter"), where, x.name, count(x.spec.Clients, "client"), n.name)
			b.report.latencies(s.sys, name, x.unit, result)
			if x.writes && beforeErr == nil {
				d := after.since(before)
				b.report.add(s.sys, name, "KB/put", float64(d.bytes)/1024/float64(result.Total))
				b.report.add(s.sys, name, "flush/put", float64(d.flushes)/float64(result.Total))
			}
		}
	}
	return nil
}

// runOn runs a load on a server in one of the ways.
func runOn(ctx context.Context, s *server, spec load.Spec, v variant) (load.Result, error) {
	if v.native {
		return s.sys.local(ctx, s, spec)
	}
	return s.remote(ctx, spec)
}
