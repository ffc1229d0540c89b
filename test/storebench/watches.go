// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/coracle-k8s/coracle/test/storebench/load"
)

const watchers = 1000

// watches measures how fast and how late a thousand watchers of one prefix hear
// of writes to it.
func (b *bench) watches(ctx context.Context, voters int) error {
	for range b.rounds {
		for _, sys := range b.systems {
			if err := b.watchesOf(ctx, sys, voters); err != nil {
				return fmt.Errorf("%s: %w", sys.name(), err)
			}
		}
	}
	return nil
}

func (b *bench) watchesOf(ctx context.Context, sys system, voters int) error {
	c, err := b.newCluster(ctx, sys, voters)
	if err != nil {
		return err
	}
	defer c.close()
	leader, _, err := c.leaderAndFollower(ctx)
	if err != nil {
		return err
	}
	flood := load.Spec{
		Kind: load.WatchFlood, Clients: 16, Watchers: watchers, Ops: pick(b, int64(200), 50),
		For: time.Minute, ValueBytes: valueBytes, Prefix: "/registry/flood/",
	}
	slow := load.Spec{
		Kind: load.WatchDelay, Clients: 16, Watchers: watchers, Rate: 10,
		For: pick(b, 3*time.Second, time.Second), ValueBytes: valueBytes, Prefix: "/registry/slow/",
	}
	_, ours := sys.(*coracle)
	for _, v := range []variant{native, grpc} {
		if !ours && v.native {
			continue
		}
		for _, spec := range []load.Spec{slow, flood} {
			r, err := b.runOn(ctx, leader, spec, v, "1")
			if err != nil {
				return fmt.Errorf("%w\n%s", err, c.logs())
			}
			names := []variant{native, grpc}
			if ours {
				names = []variant{v}
			}
			for _, n := range names {
				b.noteWatches(sys, spec, n, r)
			}
		}
	}
	return nil
}

func (b *bench) noteWatches(sys system, spec load.Spec, v variant, r load.Result) {
	name := fmt.Sprintf("1,000 watchers, %s", v.name)
	if spec.Kind == load.WatchFlood {
		b.report.add(sys, name+", puts as fast as possible", "events/s", target{}, r.Rate)
		return
	}
	name += fmt.Sprintf(", %.0f puts/s, put to event", spec.Rate)
	b.report.add(sys, name, "p50 ms", target{}, r.P50)
	b.report.add(sys, name, "p99 ms", target{}, r.P99)
}
