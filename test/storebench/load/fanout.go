// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
)

// drainTime is how long watchers may need for what was written.
const drainTime = 30 * time.Second

// fanOut opens s.Watchers watches as the API server does, writes, and waits
// until every watcher has seen every write, in order. An event's delay is from
// the start of its put to its receipt.
func fanOut(ctx context.Context, clients []*kubernetes.Client, s Spec) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, s.For+2*drainTime)
	defer cancel()
	puts := s.Ops
	if s.Kind == WatchDelay {
		puts = int64(s.Rate * s.For.Seconds())
	}
	prefix := fmt.Sprintf("%s%016x/", s.Prefix, time.Now().UnixNano())
	base := time.Now()
	seen := make([][]time.Duration, s.Watchers)
	errs := make(chan error, s.Watchers+1) // all of them and the writer
	var opened, all sync.WaitGroup
	opened.Add(s.Watchers)
	for i := range s.Watchers {
		all.Go(func() {
			delays, err := watch(ctx, clients[i%len(clients)], prefix, puts, base, opened.Done)
			if seen[i] = delays; err != nil {
				errs <- fmt.Errorf("watcher %d: %w", i, err)
				cancel()
			}
		})
	}
	opened.Wait()
	start := time.Now()
	if err := writeStamped(ctx, clients, prefix, puts, base, s); err != nil {
		errs <- err
		cancel()
	}
	all.Wait()
	seconds := time.Since(start).Seconds()
	select {
	case err := <-errs:
		return Result{}, err
	default:
	}
	delays := slices.Concat(seen...)
	r := Result{Seconds: seconds, Measured: int64(len(delays)), Total: puts, Rate: float64(len(delays)) / seconds}
	r.quantiles(delays)
	return r, nil
}

// watch receives until it has seen all puts. It calls opened once.
func watch(ctx context.Context, c *kubernetes.Client, prefix string, puts int64, base time.Time, opened func()) ([]time.Duration, error) {
	once := sync.OnceFunc(opened)
	defer once()
	var delays []time.Duration
	var last int64
	events := c.Watch(clientv3.WithRequireLeader(ctx), prefix,
		clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithProgressNotify(), clientv3.WithCreatedNotify())
	for resp := range events {
		if err := resp.Err(); err != nil {
			return delays, err
		}
		now := time.Since(base)
		once()
		for _, e := range resp.Events {
			if e.Kv.ModRevision <= last {
				return delays, fmt.Errorf("revision %d came after %d", e.Kv.ModRevision, last)
			}
			last = e.Kv.ModRevision
			delays = append(delays, now-time.Duration(binary.LittleEndian.Uint64(e.Kv.Value)))
		}
		if int64(len(delays)) == puts {
			return delays, nil
		}
	}
	return delays, errors.Join(fmt.Errorf("the watch ended after %d of %d events", len(delays), puts), ctx.Err())
}

// writeStamped puts values that begin with the time, at the given rate or by
// all clients as fast as they can. Keys repeat, so that there are previous values.
func writeStamped(ctx context.Context, clients []*kubernetes.Client, prefix string, puts int64, base time.Time, s Spec) error {
	put := func(worker int, n int64) error {
		value := newValue(s, worker)
		value = append(binary.LittleEndian.AppendUint64(nil, uint64(time.Since(base))), value...)
		_, err := clients[worker%len(clients)].Put(ctx, fmt.Sprintf("%s%d", prefix, n%10), string(value))
		return err
	}
	if s.Kind == WatchDelay {
		tick := time.NewTicker(time.Duration(float64(time.Second) / s.Rate))
		defer tick.Stop()
		for n := range puts {
			<-tick.C
			if err := put(0, n); err != nil {
				return err
			}
		}
		return nil
	}
	workers := max(s.Clients, 1)
	errs := make([]error, workers)
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for n := int64(w); n < puts && errs[w] == nil; n += int64(workers) {
				errs[w] = put(w, n)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
