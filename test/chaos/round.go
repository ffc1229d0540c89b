// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/test/history"
)

// finalTimeout is for what has to come true at the end of a round.
const finalTimeout = 60 * time.Second

// round is some time of work and trouble, judged at its end.
type round struct {
	c    *cluster
	seed uint64
	long time.Duration
	say  func(format string, args ...any)

	h        *recorder
	w        *workload
	fence    *fencing
	lease    *leasing
	watchers []*watcher
	prefix   string
	nemesis  *nemesis
	totals   totals // complete when the round has been judged
	always   invariants
	audits   []history.Sequence // what the servers' histories have at the end
	audited  int64              // from this revision on

	mu    sync.Mutex
	stops map[*server]context.CancelFunc // of a server's clients
	tasks sync.WaitGroup                 // watchers, fencing, leases, ballast
}

// runRound runs one round and says what happened in it and what was wrong.
func runRound(ctx context.Context, c *cluster, number int, seed uint64, long time.Duration, say func(string, ...any)) (totals, []error) {
	r := &round{c: c, seed: seed, long: long, say: say, h: newRecorder(), stops: map[*server]context.CancelFunc{}}
	r.prefix = fmt.Sprintf("c/%d/", number)
	r.w = &workload{c: c, h: r.h, prefix: r.prefix, seed: seed}
	r.fence = &fencing{w: r.w}
	r.lease = &leasing{w: r.w, r: rand.New(rand.NewPCG(seed, 1)), seed: seed}
	err := r.run(ctx)
	errs := r.judge(err)
	if len(errs) > 0 {
		r.keep()
	}
	return r.totals, errs
}

// run lets clients work under faults, and ends with a cluster that is well and watchers that have seen all.
func (r *round) run(ctx context.Context) error {
	watching, stopWatching := context.WithCancel(ctx)
	defer r.tasks.Wait()
	defer stopWatching()
	from, err := r.revision(ctx)
	if err != nil {
		return err
	}
	r.watch(watching, from+1)
	for _, s := range r.c.all() {
		r.tasks.Go(func() { r.always.watch(watching, s) })
	}
	r.audited = from + 1
	working, stopWorking := context.WithTimeout(ctx, r.long)
	defer stopWorking()
	for _, s := range r.c.all() {
		r.join(working, s)
	}
	r.w.hop(working)
	r.w.hop(working)
	var extras sync.WaitGroup
	extras.Go(func() { r.fence.run(working) })
	extras.Go(func() { r.lease.run(working) })
	extras.Go(func() { r.lease.runCrowds(working) })
	extras.Go(func() { ballast(working, r.c, rand.New(rand.NewPCG(r.seed, 2))) })
	r.nemesis = &nemesis{
		c: r.c, r: rand.New(rand.NewPCG(r.seed, 3)), logf: r.say, now: r.h.now,
		joined: func(s *server) {
			r.tasks.Go(func() { r.always.watch(watching, s) })
			r.join(working, s)
		}, left: r.leave,
		compact: r.compact,
	}
	err = r.nemesis.run(working)
	stopWorking()
	if err == nil {
		err = r.nemesis.settle()
	}
	r.w.tasks.Wait()
	extras.Wait()
	if err == nil {
		// Each new leader gives every lease its whole time again, so where leaders changed faster than leases last,
		// none has expired yet. (Seen: 19 leaders in 75 s, 200 leases renewed in time and none gone.)
		r.lease.crowd(ctx, 1)
		err = r.c.majorityLives(ctx, rand.New(rand.NewPCG(r.seed, 4)))
	}
	if err == nil {
		err = r.c.sameMembers(ctx)
	}
	if err == nil {
		err = r.finish(ctx)
	}
	return errors.Join(err, r.always.err())
}

// join starts clients of a server.
func (r *round) join(ctx context.Context, s *server) {
	ctx, cancel := context.WithCancel(ctx)
	r.mu.Lock()
	r.stops[s] = cancel
	r.mu.Unlock()
	if err := r.w.start(ctx, s); err != nil {
		r.say("clients of %s: %v", s.name, err)
	}
}

// leave ends them.
func (r *round) leave(s *server) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stops[s]()
}

// compact drops the history that every watcher has seen.
func (r *round) compact(ctx context.Context) error {
	seen := int64(math.MaxInt64)
	for _, w := range r.watchers {
		at, err := w.position()
		if err != nil {
			return err
		}
		seen = min(seen, at)
	}
	r.audited = seen + 1
	return with(r.c.all()[0], func(etc *clientv3.Client) error {
		return eventually(ctx, "compact", func(ctx context.Context) error {
			_, err := etc.Compact(ctx, seen)
			if errors.Is(err, rpctypes.ErrCompacted) {
				return nil
			}
			return err
		})
	})
}

// watch starts a watcher that stays with each server, and two that roam.
func (r *round) watch(ctx context.Context, from int64) {
	for i, s := range r.c.all() {
		w := &watcher{name: "at " + s.name, prefix: r.prefix, h: r.h, next: from, prev: i%2 == 0}
		r.watchers = append(r.watchers, w)
		r.tasks.Go(func() { w.stay(ctx, r.c, s) })
	}
	for i := range 2 {
		w := &watcher{name: fmt.Sprintf("roaming %d", i), prefix: r.prefix, h: r.h, next: from}
		r.watchers = append(r.watchers, w)
		r.tasks.Go(func() { w.roam(ctx, r.c, rand.New(rand.NewPCG(r.seed, uint64(10+i)))) })
	}
}

// eventually tries until f succeeds.
func eventually(ctx context.Context, what string, f func(ctx context.Context) error) error {
	deadline := time.Now().Add(finalTimeout)
	for {
		try, cancel := context.WithTimeout(ctx, 3*time.Second)
		err := f(try)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("%s, not within %v: %w", what, finalTimeout, err)
		}
		pause(ctx, 50*time.Millisecond)
	}
}

// with runs f with a client of a server.
func with(s *server, f func(etc *clientv3.Client) error) error {
	etc, err := s.connect()
	if err != nil {
		return err
	}
	defer etc.Close()
	return f(etc)
}

// revision returns the cluster's.
func (r *round) revision(ctx context.Context) (rev int64, err error) {
	err = with(r.c.all()[0], func(etc *clientv3.Client) error {
		return eventually(ctx, "read a revision", func(ctx context.Context) error {
			resp, err := etc.Get(ctx, r.prefix)
			if err == nil {
				rev = resp.Header.Revision
			}
			return err
		})
	})
	return rev, err
}

// finish waits until the leases are gone and the watchers have everything, and compares the servers.
func (r *round) finish(ctx context.Context) error {
	first := r.c.all()[0]
	var last int64
	err := with(first, func(etc *clientv3.Client) error {
		err := eventually(ctx, "leases that no client keeps alive end", func(ctx context.Context) error {
			resp, err := etc.Get(ctx, r.prefix+"l/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
			if err == nil && len(resp.Kvs) > 0 {
				err = fmt.Errorf("%d keys are left, the first is %s", len(resp.Kvs), resp.Kvs[0].Key)
			}
			return err
		})
		if err != nil {
			return err
		}
		return eventually(ctx, "a last write", func(ctx context.Context) error {
			resp, err := etc.Put(ctx, r.prefix+"z", r.w.value(0))
			if err == nil {
				last = resp.Header.Revision
			}
			return err
		})
	})
	if err != nil {
		return err
	}
	for _, w := range r.watchers {
		err := eventually(ctx, "watcher "+w.name+" sees everything", func(context.Context) error {
			at, err := w.position()
			if err == nil && at < last {
				err = fmt.Errorf("it is at revision %d of %d", at, last)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	for _, s := range r.c.all() {
		seq, err := audit(ctx, r.h, s, r.prefix, r.audited, last)
		if err != nil {
			return err
		}
		r.audits = append(r.audits, seq)
	}
	return r.compare(ctx)
}

// compare checks that all servers hold the same.
func (r *round) compare(ctx context.Context) error {
	return eventually(ctx, "all servers hold the same", func(ctx context.Context) error {
		var messages []string
		for _, s := range r.c.all() {
			err := with(s, func(etc *clientv3.Client) error {
				h, err := etc.HashKV(ctx, s.client(), 0)
				if err == nil {
					messages = append(messages, fmt.Sprintf("revision %d hash %x compacted %d", h.HashRevision, h.Hash, h.CompactRevision))
				}
				return err
			})
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
		if len(slices.Compact(slices.Clone(messages))) != 1 {
			return fmt.Errorf("they differ: %q", messages)
		}
		return nil
	})
}

// sweep removes what a round has left and compacts, so that the next one starts small.
func sweep(ctx context.Context, c *cluster) error {
	return with(c.all()[0], func(etc *clientv3.Client) error {
		return eventually(ctx, "sweep", func(ctx context.Context) error {
			var rev int64
			for _, prefix := range []string{"b/", "c/"} {
				resp, err := etc.Delete(ctx, prefix, clientv3.WithPrefix())
				if err != nil {
					return err
				}
				rev = resp.Header.Revision
			}
			_, err := etc.Compact(ctx, rev)
			return err
		})
	})
}
