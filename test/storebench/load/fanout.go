// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
)

// drainTime is how long watchers may need for what was written.
const drainTime = 30 * time.Second

// fanOut opens s.Watchers watches as the API server does, writes as fast as s.Clients can, and waits until every
// watcher has seen every write, in order.
func fanOut(ctx context.Context, clients []*kubernetes.Client, s Spec) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, s.For+2*drainTime)
	defer cancel()
	prefix := fmt.Sprintf("%s%016x/", s.Prefix, time.Now().UnixNano())
	errs := make(chan error, s.Watchers+1) // all of them and the writer
	var opened, all sync.WaitGroup
	opened.Add(s.Watchers)
	for i := range s.Watchers {
		all.Go(func() {
			if err := watch(ctx, clients[i%len(clients)], prefix, s.Ops, opened.Done); err != nil {
				errs <- fmt.Errorf("watcher %d: %w", i, err)
				cancel()
			}
		})
	}
	opened.Wait()
	start := time.Now()
	if err := writeAll(ctx, clients, prefix, s); err != nil {
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
	events := s.Ops * int64(s.Watchers)
	return Result{Seconds: seconds, Measured: events, Total: s.Ops, Rate: float64(events) / seconds}, nil
}

// watch receives until it has seen all puts. It calls opened once.
func watch(ctx context.Context, c *kubernetes.Client, prefix string, puts int64, opened func()) error {
	once := sync.OnceFunc(opened)
	defer once()
	var seen, last int64
	events := c.Watch(clientv3.WithRequireLeader(ctx), prefix,
		clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithProgressNotify(), clientv3.WithCreatedNotify())
	for resp := range events {
		if err := resp.Err(); err != nil {
			return err
		}
		once()
		for _, e := range resp.Events {
			if e.Kv.ModRevision <= last {
				return fmt.Errorf("revision %d came after %d", e.Kv.ModRevision, last)
			}
			last = e.Kv.ModRevision
			seen++
		}
		if seen == puts {
			return nil
		}
	}
	return errors.Join(fmt.Errorf("the watch ended after %d of %d events", seen, puts), ctx.Err())
}

// writeAll puts s.Ops values, by all clients as fast as they can. Keys repeat, so that there are previous values.
func writeAll(ctx context.Context, clients []*kubernetes.Client, prefix string, s Spec) error {
	workers := max(s.Clients, 1)
	errs := make([]error, workers)
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			value := string(newValue(s, w))
			for n := int64(w); n < s.Ops && errs[w] == nil; n += int64(workers) {
				_, errs[w] = clients[w%len(clients)].Put(ctx, fmt.Sprintf("%s%d", prefix, n%10), value)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
