// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// leaseTTL is that of every lease; a lost leader gives each its whole time again.
const leaseTTL = 4 * time.Second

// tenancy is one lease with one key, kept alive for a while.
type tenancy struct {
	Key     string  `json:"key"`
	Lease   int64   `json:"lease"`
	Kept    []int64 `json:"kept"` // when each acknowledged keepalive was sent
	Dropped int64   `json:"dropped"`
	Lost    string  `json:"lost,omitempty"` // what a keepalive was told if the lease was gone
	LostAt  int64   `json:"lostAt,omitempty"`
}

// leasing keeps leases alive, on one server after the other, and lets them go.
type leasing struct {
	w *workload
	r *rand.Rand

	mu        sync.Mutex
	tenancies []*tenancy
}

// run holds one lease after the other until ctx ends.
func (l *leasing) run(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		t := l.begin(ctx, n)
		if t == nil {
			pause(ctx, 200*time.Millisecond)
			continue
		}
		l.mu.Lock()
		l.tenancies = append(l.tenancies, t)
		l.mu.Unlock()
		l.keep(ctx, t, time.Duration(5+l.r.IntN(20))*time.Second)
	}
}

func (l *leasing) any() (*clientv3.Client, error) {
	all := l.w.c.all()
	return all[l.r.IntN(len(all))].connect()
}

func (l *leasing) begin(ctx context.Context, n int) *tenancy {
	etc, err := l.any()
	if err != nil {
		return nil
	}
	defer etc.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	at := l.w.h.now()
	grant, err := etc.Grant(ctx, int64(leaseTTL/time.Second))
	if err != nil {
		return nil
	}
	t := &tenancy{Key: fmt.Sprintf("%sl/%d", l.w.prefix, n), Lease: int64(grant.ID), Kept: []int64{at}}
	if _, err := etc.Put(ctx, t.Key, l.w.value(0), clientv3.WithLease(grant.ID)); err != nil {
		return nil
	}
	return t
}

// keep sends keepalives to changing servers for some time.
func (l *leasing) keep(ctx context.Context, t *tenancy, long time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, long)
	defer cancel()
	for ctx.Err() == nil {
		at, err := l.w.h.now(), l.renew(ctx, t)
		l.mu.Lock()
		switch {
		case err == nil:
			t.Kept = append(t.Kept, at)
		case isGone(err):
			t.Lost, t.LostAt = err.Error(), l.w.h.now()
		}
		lost := t.Lost != ""
		l.mu.Unlock()
		if lost {
			return
		}
		pause(ctx, 300*time.Millisecond)
	}
	l.mu.Lock()
	t.Dropped = l.w.h.now()
	l.mu.Unlock()
}

func (l *leasing) renew(ctx context.Context, t *tenancy) error {
	etc, err := l.any()
	if err != nil {
		return err
	}
	defer etc.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err = etc.KeepAliveOnce(ctx, clientv3.LeaseID(t.Lease))
	return err
}

func (l *leasing) check(seen *timeline) []error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return checkLeases(l.tenancies, seen)
}

// checkLeases checks that no key vanished within a TTL of a keepalive that was acknowledged, and that all vanished
// in the end.
func checkLeases(tenancies []*tenancy, seen *timeline) []error {
	var errs []error
	for _, t := range tenancies {
		var gone int64
		for _, e := range seen.byKey[t.Key] {
			if e.Delete {
				gone = e.At
			}
		}
		if gone == 0 && t.Lost == "" {
			if len(seen.byKey[t.Key]) > 0 {
				errs = append(errs, fmt.Errorf("%s was never deleted, long after its lease %x was let go", t.Key, t.Lease))
			}
			continue
		}
		if t.LostAt != 0 && (gone == 0 || t.LostAt < gone) {
			gone = t.LostAt
		}
		for _, at := range t.Kept {
			if at < gone && gone < at+int64(leaseTTL) {
				errs = append(errs, fmt.Errorf("%s vanished %v after a keepalive that was acknowledged; its lease %x lasts %v",
					t.Key, time.Duration(gone-at), t.Lease, leaseTTL))
				break
			}
		}
	}
	return errs
}

func isGone(err error) bool { return errors.Is(err, rpctypes.ErrLeaseNotFound) }
