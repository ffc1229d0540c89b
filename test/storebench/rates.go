// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
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
	name      string
	unit      string
	spec      load.Spec
	rate, p99 target
	// variants are the ways to ask our store; etcd's one is compared with each.
	variants []variant
	writes   bool
}

type variant struct {
	name   string
	native bool
}

var (
	native = variant{"native", true}
	grpc   = variant{"gRPC", false}
)

// writeTargets are those of the whole path that the API server uses.
func writeTargets(clients int) (rate, p99 target) {
	if clients == 1 {
		return target{AtLeast: 1.2}, target{}
	}
	return target{AtLeast: 3}, target{AtMost: 0.5}
}

// cells lists what is measured on a leader or a follower.
func (b *bench) cells(follower bool) []cell {
	var all []cell
	length, warmup := pick(b, 3*time.Second, 600*time.Millisecond), pick(b, 500*time.Millisecond, 150*time.Millisecond)
	add := func(c cell, kind load.Kind, clients int, of time.Duration) {
		c.spec = load.Spec{
			Kind: kind, Clients: clients, For: of, Warmup: warmup, ValueBytes: valueBytes, Prefix: prefix,
			Keys: readKeys, ReadPrefix: readPrefix, Page: c.spec.Page, ReadPercent: 80,
		}
		all = append(all, c)
	}
	both := []variant{native, grpc}
	for _, clients := range []int{1, 16, 128} {
		rate, p99 := writeTargets(clients)
		add(cell{name: "API server's writes", unit: "puts/s", rate: rate, p99: p99, variants: both, writes: true}, load.APIWrite, clients, length)
	}
	if !follower {
		for _, clients := range []int{1, 16, 128} {
			add(cell{name: "plain puts", unit: "puts/s", variants: []variant{grpc}, writes: true}, load.Put, clients, length)
		}
	}
	short := pick(b, 2*time.Second, 400*time.Millisecond)
	for _, clients := range []int{1, 16, 128} {
		add(cell{name: "linearizable gets", unit: "gets/s", variants: both}, load.Get, clients, short)
	}
	for _, clients := range []int{16, 128} {
		add(cell{name: "80% gets, 20% writes", unit: "ops/s", variants: both}, load.Mixed, clients, short)
	}
	if follower {
		return all
	}
	add(cell{name: "lists of 500", unit: "lists/s", variants: both, spec: load.Spec{Page: 500}}, load.List, 1, short)
	add(cell{name: "lists of 10,000", unit: "lists/s", variants: both, spec: load.Spec{Page: readKeys}}, load.List, 1, short)
	add(cell{name: "lists of 10,000, streamed", unit: "lists/s", variants: both, spec: load.Spec{Page: readKeys}}, load.ListStream, 1, short)
	return all
}

// rates measures all cells, in turns on ours and on etcd.
func (b *bench) rates(ctx context.Context, voters int) error {
	for round := range b.rounds {
		if time.Since(b.began) > b.limit {
			return fmt.Errorf("time is over after %d of %d rounds", round, b.rounds)
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
	where := ""
	if follower != nil {
		where = ", leader"
	}
	for _, x := range b.cells(false) {
		if err := b.measure(ctx, leader, x, voters, where); err != nil {
			return fmt.Errorf("%w\n%s", err, c.logs())
		}
	}
	if follower == nil {
		return nil
	}
	for _, x := range b.cells(true) {
		if err := b.measure(ctx, follower, x, voters, ", follower"); err != nil {
			return fmt.Errorf("%w\n%s", err, c.logs())
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
	_, ours := s.sys.(*coracle)
	variants := x.variants
	if !ours {
		variants = variants[:1]
	}
	for _, v := range variants {
		before, beforeErr := b.device.counters()
		result, err := b.runCell(ctx, s, x, v, fmt.Sprintf("%d%s", voters, where))
		if err != nil {
			return err
		}
		after, _ := b.device.counters()
		names := x.variants // etcd's figure stands beside each of ours
		if ours {
			names = []variant{v}
		}
		for _, n := range names {
			name := fmt.Sprintf("%s%s: %s, %s, %s", count(voters, "voter"), where, x.name, count(x.spec.Clients, "client"), n.name)
			rate, p99 := x.rate, x.p99
			if !n.native {
				rate, p99 = target{}, target{}
			}
			b.report.latencies(s.sys, name, x.unit, rate, p99, result)
			if x.writes && beforeErr == nil {
				d := after.since(before)
				b.report.add(s.sys, name, "KB/put", target{}, float64(d.bytes)/1024/float64(result.Total))
				b.report.add(s.sys, name, "flush/put", target{}, float64(d.flushes)/float64(result.Total))
			}
		}
	}
	return nil
}

func (b *bench) runCell(ctx context.Context, s *server, x cell, v variant, where string) (load.Result, error) {
	profile := ""
	if _, ours := s.sys.(*coracle); ours && b.profiles != "" {
		file := fmt.Sprintf("%s-%s-%d-%s.pprof", where, x.spec.Kind, x.spec.Clients, v.name)
		profile = filepath.Join(b.profiles, strings.NewReplacer(", ", "-", " ", "-").Replace(file))
	}
	if v.native {
		return s.sys.local(ctx, s, x.spec, profile)
	}
	if profile != "" {
		done := make(chan error, 1)
		go func() {
			_, err := s.sys.local(ctx, s, load.Spec{For: x.spec.Warmup + x.spec.For}, profile)
			done <- err
		}()
		defer func() { <-done }()
	}
	return s.remote(ctx, x.spec)
}
