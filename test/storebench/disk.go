// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/coracle-k8s/coracle/test/storebench/load"
)

// disk measures bytes and flushes over enough writes that what each store does
// only now and then (snapshots, back-end commits) is in the figures.
func (b *bench) disk(ctx context.Context, voters int) error {
	if b.device.number == "" {
		return fmt.Errorf("the kernel does not count what goes to the disk below %s", b.dir)
	}
	spec := load.Spec{
		Kind: load.APIWrite, Clients: 16, For: pick(b, 2*time.Minute, 20*time.Second),
		Ops: pick(b, int64(300_000), 40_000), Keys: 10_000, ValueBytes: valueBytes, Prefix: prefix,
	}
	for _, spec.Objects = range []bool{false, true} {
		for _, sys := range b.systems {
			if err := b.diskOf(ctx, sys, voters, spec); err != nil {
				return fmt.Errorf("%s: %w", sys.name(), err)
			}
		}
	}
	return nil
}

func (b *bench) diskOf(ctx context.Context, sys system, voters int, spec load.Spec) error {
	c, err := b.newCluster(ctx, sys, voters)
	if err != nil {
		return err
	}
	defer c.close()
	leader, _, err := c.leaderAndFollower(ctx)
	if err != nil {
		return err
	}
	before, err := b.device.settled()
	if err != nil {
		return err
	}
	r, err := sys.local(ctx, leader, spec)
	if err != nil {
		return err
	}
	after, err := b.device.settled()
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%.0f MB of puts", float64(spec.Ops)*float64(spec.ValueBytes)/1e6)
	if spec.Objects {
		what = fmt.Sprintf("%d API objects", spec.Ops)
	}
	name := fmt.Sprintf("disk, %s, %s, %s", count(voters, "voter"), count(spec.Clients, "client"), what)
	d, puts := after.since(before), float64(r.Total)
	b.report.add(sys, name, "KB/put", float64(d.bytes)/1024/puts)
	b.report.add(sys, name, "flush/put", float64(d.flushes)/puts)
	return nil
}
