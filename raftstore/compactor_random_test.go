// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// replicas are the compactors of three servers, each with the same state at every moment. What is compacted too early
// is an error.
type replicas struct {
	testing.TB
	rand    *rand.Rand
	age     time.Duration
	all     [3]*compactor
	mu      sync.Mutex
	state   *mvcc.State
	written []time.Time   // of each revision
	stalls  time.Duration // by how much a mark may be held up
}

func newReplicas(t testing.TB, seed uint64) *replicas {
	r := &replicas{TB: t, rand: rand.New(rand.NewPCG(seed, 0)), age: 5 * time.Minute, state: mvcc.New()}
	for i := range r.all {
		r.start(i)
	}
	return r
}

// start makes a server's compactor, which knows nothing of what it saw before.
func (r *replicas) start(i int) {
	r.all[i] = &compactor{
		clock: clock.RealClock{}, age: r.age, bytes: 1 << 40, quota: func() int64 { return 1 << 50 }, wake: make(chan struct{}, 1), view: r.view,
		compact: func(_ context.Context, rev int64) error {
			if age := r.ageOf(rev); age < r.age {
				r.Errorf("compacted to revision %d, which was %v old", rev, age)
			}
			return r.apply(&pb.CompactionRequest{Revision: rev})
		},
		setMark: func(ctx context.Context, value string) (int64, error) {
			if r.stalls > 0 && r.upTo(3) == 0 {
				select {
				case <-time.After(r.upTo(r.stalls)):
				case <-ctx.Done():
					if r.upTo(2) == 0 { // it may have been written all the same
						return 0, ctx.Err()
					}
				}
			}
			err := r.apply(&pb.PutRequest{Key: []byte(compactKey), Value: []byte(value)})
			if err == nil {
				err = ctx.Err()
			}
			return r.view().Revision(), err
		},
	}
}

func (r *replicas) view() *mvcc.View {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.Freeze()
}

func (r *replicas) ageOf(rev int64) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Since(r.written[rev])
}

// upTo draws one from n.
func (r *replicas) upTo(n time.Duration) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Duration(r.rand.Int64N(int64(n)))
}

func (r *replicas) apply(req mvcc.Request) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.state.Apply(req).Err
	view := r.state.Freeze()
	for int64(len(r.written)) <= view.Revision() {
		r.written = append(r.written, time.Now())
	}
	for _, c := range r.all {
		c.published(view)
	}
	return err
}

// lead runs the compactor of one server for a term, and writes something now and then.
func (r *replicas) lead(i int, term time.Duration) {
	ctx, stop := context.WithTimeout(context.Background(), term)
	defer stop()
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { r.all[i].run(ctx) })
	for ctx.Err() == nil {
		time.Sleep(time.Second + r.upTo(9*time.Second)) // fake time
		testenv.Check(r, r.apply(&pb.PutRequest{Key: []byte("/lease"), Value: []byte("x")}))
	}
}

// TestHistoryByAgeWithManyLeaders: no revision goes before its age, whatever happens to the leaders and to their disks,
// and where leaders only change, none stays for much longer than twice that.
func TestHistoryByAgeWithManyLeaders(t *testing.T) {
	for seed := range uint64(20) {
		for _, failing := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				r := newReplicas(t, seed)
				if failing {
					r.stalls = 2 * r.age
				}
				for range 40 {
					r.lead(int(r.upTo(3)), 40*time.Second+r.upTo(8*time.Minute))
					if failing && r.upTo(4) == 0 {
						r.start(int(r.upTo(3)))
					}
					gone := r.view().Compacted()
					for rev := int64(len(r.written)) - 1; !failing && rev > gone; rev-- {
						if age := r.ageOf(rev); age > 2*r.age+3*time.Minute {
							t.Fatalf("seed %d: revision %d is %v old", seed, rev, age)
						}
					}
				}
				testenv.Require(t, !t.Failed(), "seed %d, disks that stall: %v", seed, failing)
			})
		}
	}
}
