// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/coracle-k8s/coracle/test/storebench/load"
)

const watchers = 1000

// watches measures how fast a thousand watchers of one prefix receive the writes to it.
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
	_, isCoracle := sys.(*coracle)
	for i, v := range variants {
		names := variants[i : i+1]
		if !isCoracle {
			if i > 0 {
				break
			}
			names = variants
		}
		r, err := runOn(ctx, leader, flood, v)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, c.logs())
		}
		for _, n := range names {
			name := fmt.Sprintf("1,000 watchers, %s, puts as fast as possible", n.name)
			b.report.add(sys, name, "events/s", r.Rate)
		}
	}
	return nil
}
