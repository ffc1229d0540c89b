// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/v3/kubernetes"
)

// opTimeout is when an operation counts as failed.
const opTimeout = 10 * time.Second

// drive runs closed-loop workers: each does one operation after the other.
func drive(ctx context.Context, clients []*kubernetes.Client, s Spec) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, s.Warmup+s.For+opTimeout)
	defer cancel()
	start := time.Now()
	from, to := start.Add(s.Warmup), start.Add(s.Warmup+s.For)
	if s.Ops > 0 {
		from = start
	}
	var next atomic.Int64
	workers := make([]worker, s.Clients)
	var all sync.WaitGroup
	for i := range workers {
		w := &workers[i]
		op := newOp(clients[i%len(clients)], s, i)
		all.Go(func() { w.run(ctx, op, from, to, s.Ops, &next) })
	}
	all.Wait()
	r := Result{Seconds: time.Since(from).Seconds()} // till the last operation's end: a stall counts, wherever it falls
	var latencies []time.Duration
	for i := range workers {
		w := &workers[i]
		r.Total += w.total
		r.Errors += w.errors
		if r.FirstError == "" && w.err != nil {
			r.FirstError = w.err.Error()
		}
		latencies = slices.Concat(latencies, w.latencies)
	}
	r.Measured = int64(len(latencies))
	r.Rate = float64(r.Measured) / r.Seconds
	r.quantiles(latencies)
	return r, ctx.Err()
}

type worker struct {
	latencies     []time.Duration
	total, errors int64
	err           error // the first one
}

// run does operations until the time is over or the number reached. What begins
// in the measured time counts.
func (w *worker) run(ctx context.Context, op operation, from, to time.Time, ops int64, next *atomic.Int64) {
	for ctx.Err() == nil {
		begin := time.Now()
		var n int64
		if ops > 0 {
			n = next.Add(1) - 1
		}
		if begin.After(to) || ops > 0 && n >= ops {
			return
		}
		err := op(ctx, n)
		end := time.Now()
		if err != nil {
			if w.errors++; w.err == nil {
				w.err = err
			}
			continue
		}
		w.total++
		if !begin.Before(from) {
			w.latencies = append(w.latencies, end.Sub(begin))
		}
	}
}
