// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// leadingLessor runs a lessor as leader, with these leases, in a bubble of time.
func leadingLessor(t *testing.T, revoke func(ctx context.Context, id int64) error, leases ...mvcc.Lease) *lessor {
	l := newLessor(clock.RealClock{}, revoke)
	l.promote(func() []mvcc.Lease { return leases })
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return l
}

func TestKeepAliveWaitsForRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l *lessor
		l = leadingLessor(t, func(_ context.Context, id int64) error {
			time.Sleep(300 * time.Millisecond)
			l.removeLease(id)
			return nil
		}, mvcc.Lease{ID: 1, TTL: 10}, mvcc.Lease{ID: 2, TTL: 10})
		start := time.Now()
		time.Sleep(10 * time.Second) // expired, and not yet revoked
		if ttl, err := l.renew(t.Context(), 1); ttl != 10 || err != nil {
			t.Errorf("a keep-alive before the lessor has decided: TTL %d, %v", ttl, err)
		}
		time.Sleep(200 * time.Millisecond) // lease 2 is being revoked
		if ttl, err := l.renew(t.Context(), 2); ttl != 0 || err != nil {
			t.Errorf("a keep-alive for a lease that is being revoked: TTL %d, %v", ttl, err)
		}
		if took := time.Since(start); took != 10*time.Second+expiryGrain+300*time.Millisecond {
			t.Errorf("it was answered after %v, before the lease was gone", took)
		}
		if left, ok := l.remainingTTL(1); !ok || left != 10*time.Second-expiryGrain-300*time.Millisecond {
			t.Errorf("the lease that was renewed has %v left, %v", left, ok)
		}
	})
}

func TestKeepAliveEndsWithTheTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := leadingLessor(t, func(ctx context.Context, _ int64) error {
			<-ctx.Done() // no majority
			return ctx.Err()
		}, mvcc.Lease{ID: 1, TTL: 2})
		time.Sleep(3 * time.Second)
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.renew(impatient, 1); err == nil || errors.Is(err, errNotLeader) {
			t.Errorf("a keep-alive that no server could answer: %v", err)
		}
		answered := make(chan error)
		go func() {
			_, err := l.renew(t.Context(), 1)
			answered <- err
		}()
		synctest.Wait()
		l.demote()
		if err := <-answered; !errors.Is(err, errNotLeader) {
			t.Errorf("the term ended meanwhile: %v", err)
		}
		if _, err := l.renew(t.Context(), 1); !errors.Is(err, errNotLeader) {
			t.Errorf("after the term: %v", err)
		}
	})
}

// TestFailedRevocationIsTriedAgain: what failed may have been done all the
// same, so the lease stays one that cannot be renewed.
func TestFailedRevocationIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l *lessor
		failures := 3
		l = leadingLessor(t, func(_ context.Context, id int64) error {
			if failures--; failures >= 0 {
				return errors.New("the disk is full")
			}
			l.removeLease(id)
			return nil
		}, mvcc.Lease{ID: 1, TTL: 2})
		time.Sleep(3 * time.Second)
		start := time.Now()
		if ttl, err := l.renew(t.Context(), 1); ttl != 0 || err != nil {
			t.Errorf("TTL %d, %v", ttl, err)
		}
		if took := time.Since(start); took > 3*revokeRetry {
			t.Errorf("revoked only after %v", took)
		}
	})
}

// TestLessorRevokesInTime compares with the plainest account of when each lease
// expires.
func TestLessorRevokesInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		var mu sync.Mutex // guards expires and count
		expires, count := make(map[int64]time.Time), 0
		var l *lessor
		revoked := make(chan int64)
		l = leadingLessor(t, func(_ context.Context, id int64) error {
			l.removeLease(id)
			revoked <- id
			return nil
		})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for id := range revoked {
				mu.Lock()
				if late := time.Since(expires[id]); late < 0 || late > expiryGrain {
					t.Errorf("lease %d was revoked %v after its expiry", id, late)
				}
				delete(expires, id)
				count++
				mu.Unlock()
			}
		}()
		for range 2000 {
			time.Sleep(time.Duration(r.Int64N(int64(50 * time.Millisecond))))
			synctest.Wait()
			id, ttl := r.Int64N(300)+1, r.Int64N(8)+2
			mu.Lock()
			switch _, granted := expires[id]; {
			case !granted:
				l.add(id, ttl)
				expires[id] = time.Now().Add(time.Duration(ttl) * time.Second)
			case r.IntN(10) == 0:
				l.removeLease(id)
				delete(expires, id)
			default:
				if ttl, err := l.renew(t.Context(), id); err != nil || ttl == 0 {
					t.Fatalf("lease %d: %d, %v", id, ttl, err)
				} else {
					expires[id] = time.Now().Add(time.Duration(ttl) * time.Second)
				}
			}
			mu.Unlock()
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		testenv.False(t, len(expires) != 0 || count < 100, "%d leases were revoked, and %d not", count, len(expires))
		close(revoked)
		<-done
	})
}

// A lease that is granted again under the id of one that has just expired is
// another lease: who hears late that the first one was revoked does not end it.
func TestGrantedAgainWhileRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l *lessor
		grant := func() {
			l.observe(mvcc.Command{Request: &pb.LeaseGrantRequest{ID: 1}}, mvcc.Result{Response: &pb.LeaseGrantResponse{ID: 1, TTL: 10}})
		}
		revoke := func(err error) {
			l.observe(mvcc.Command{Request: &pb.LeaseRevokeRequest{ID: 1}}, mvcc.Result{Err: err})
		}
		revoked := 0
		l = leadingLessor(t, func(context.Context, int64) error {
			revoked++
			revoke(nil)
			if revoked == 1 {
				grant()
			}
			return nil
		})
		grant()
		time.Sleep(11 * time.Second)
		if _, ok := l.remainingTTL(1); !ok || revoked != 1 {
			t.Errorf("the second lease is not known, after %d revocations", revoked)
		}
		revoke(mvcc.ErrSession)
		if _, ok := l.remainingTTL(1); !ok {
			t.Error("a revocation that was refused ended the lease")
		}
		revoke(rpctypes.ErrGRPCLeaseNotFound)
		if _, ok := l.remainingTTL(1); ok {
			t.Error("a lease that does not exist is known")
		}
	})
}
