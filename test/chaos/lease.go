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

	"github.com/coracle-k8s/coracle/test/history"
)

// leaseTTL is that of every lease; a lost leader gives each its whole time again.
const leaseTTL = 4 * time.Second

const (
	// crowd is how many leases are granted together, to expire together.
	crowd = 40
	// crowdRenewals is how often each of them is renewed at most.
	crowdRenewals = 3
	// beforeExpiry and afterExpiry bound when it is renewed: around the moment in which its leader revokes it.
	beforeExpiry, afterExpiry = 300 * time.Millisecond, 300 * time.Millisecond
)

// tenancy is one lease with one key, kept alive for a while.
type tenancy struct {
	Key     string  `json:"key"`
	Lease   int64   `json:"lease"`
	Kept    []int64 `json:"kept"` // when each acknowledged keepalive was sent
	Dropped int64   `json:"dropped"`
	Lost    string  `json:"lost,omitempty"` // what a keepalive got if the lease was gone
	LostAt  int64   `json:"lostAt,omitempty"`
	Crowded bool    `json:"crowded,omitempty"` // one of many that expire together, renewed at that moment
}

// leasing keeps leases alive, on one server after the other, and lets them go.
type leasing struct {
	w      *workload
	r      *rand.Rand
	seed   uint64
	crowds int // so far

	mu        sync.Mutex
	tenancies []*tenancy
}

// run holds one lease after the other until ctx ends.
func (l *leasing) run(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		t := l.begin(ctx, l.r, fmt.Sprint(n))
		if t == nil {
			pause(ctx, 200*time.Millisecond)
			continue
		}
		l.keep(ctx, t, time.Duration(5+l.r.IntN(20))*time.Second)
	}
}

// runCrowds lets one crowd after the other expire until ctx ends.
func (l *leasing) runCrowds(ctx context.Context) {
	for ctx.Err() == nil {
		l.crowd(ctx, crowdRenewals)
		pause(ctx, 200*time.Millisecond)
	}
}

// crowd grants many leases together and renews each, a number of times at most, in the moment in which it expires: the
// leader revokes some while others are renewed.
func (l *leasing) crowd(ctx context.Context, renewals int) {
	var members sync.WaitGroup
	for i := range crowd {
		r := rand.New(rand.NewPCG(l.seed, uint64(l.crowds*crowd+i)))
		name := fmt.Sprintf("crowd/%d/%d", l.crowds, i)
		members.Go(func() {
			if t := l.begin(ctx, r, name); t != nil {
				l.keepAtExpiry(ctx, r, t, renewals)
			}
		})
	}
	members.Wait()
	l.crowds++
}

// keepAtExpiry renews a lease a number of times, around the moment in which it expires.
func (l *leasing) keepAtExpiry(ctx context.Context, r *rand.Rand, t *tenancy, renewals int) {
	l.mu.Lock()
	t.Crowded = true
	l.mu.Unlock()
	for range renewals {
		last := t.Kept[len(t.Kept)-1] // only this goroutine adds to it
		early := beforeExpiry - time.Duration(r.Int64N(int64(beforeExpiry+afterExpiry)))
		pause(ctx, time.Duration(last-l.w.h.now())+leaseTTL-early)
		if ctx.Err() != nil || !l.keepOnce(ctx, r, t) {
			break
		}
	}
	l.drop(t)
}

func (l *leasing) any(r *rand.Rand) (*clientv3.Client, error) {
	all := l.w.c.all()
	return all[r.IntN(len(all))].connect()
}

// begin grants a lease and writes a key with it. It returns nil if that failed.
func (l *leasing) begin(ctx context.Context, r *rand.Rand, name string) *tenancy {
	etc, err := l.any(r)
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
	t := &tenancy{Key: l.w.prefix + "l/" + name, Lease: int64(grant.ID), Kept: []int64{at}}
	if _, err := etc.Put(ctx, t.Key, l.w.value(0), clientv3.WithLease(grant.ID)); err != nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tenancies = append(l.tenancies, t)
	return t
}

// keep sends keepalives to changing servers for some time.
func (l *leasing) keep(ctx context.Context, t *tenancy, long time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, long)
	defer cancel()
	for ctx.Err() == nil && l.keepOnce(ctx, l.r, t) {
		pause(ctx, 300*time.Millisecond)
	}
	l.drop(t)
}

// keepOnce sends one keepalive to some server. It says whether there is any use in another.
func (l *leasing) keepOnce(ctx context.Context, r *rand.Rand, t *tenancy) bool {
	at, err := l.w.h.now(), l.renew(ctx, r, t)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		t.Kept = append(t.Kept, at)
	case isExpired(err):
		t.Lost, t.LostAt = err.Error(), l.w.h.now()
	}
	return t.Lost == ""
}

// drop notes that a lease is no longer kept alive.
func (l *leasing) drop(t *tenancy) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.Lost == "" {
		t.Dropped = l.w.h.now()
	}
}

func (l *leasing) renew(ctx context.Context, r *rand.Rand, t *tenancy) error {
	etc, err := l.any(r)
	if err != nil {
		return err
	}
	defer etc.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err = etc.KeepAliveOnce(ctx, clientv3.LeaseID(t.Lease))
	return err
}

// atExpiry counts the leases of crowds that were renewed at least once, and those that were refused.
func (l *leasing) atExpiry() (renewed, refused int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range l.tenancies {
		if t.Crowded && len(t.Kept) > 1 {
			renewed++
		}
		if t.Crowded && t.Lost != "" {
			refused++
		}
	}
	return renewed, refused
}

// checkLeases checks that no key vanished within a TTL of a keepalive that was acknowledged, and that all vanished
// in the end.
func checkLeases(tenancies []*tenancy, seen *history.Timeline) []error {
	var errs []error
	for _, t := range tenancies {
		var expired int64
		for _, e := range seen.ByKey[t.Key] {
			if e.Delete {
				expired = e.At
			}
		}
		if expired == 0 && t.Lost == "" {
			if len(seen.ByKey[t.Key]) > 0 {
				errs = append(errs, fmt.Errorf("%s was never deleted, long after its lease %x was let go", t.Key, t.Lease))
			}
			continue
		}
		if t.LostAt != 0 && (expired == 0 || t.LostAt < expired) {
			expired = t.LostAt
		}
		for _, at := range t.Kept {
			if at < expired && expired < at+int64(leaseTTL) {
				errs = append(errs, fmt.Errorf("%s vanished %v after a keepalive that was acknowledged; its lease %x lasts %v",
					t.Key, time.Duration(expired-at), t.Lease, leaseTTL))
				break
			}
		}
	}
	return errs
}

func isExpired(err error) bool { return errors.Is(err, rpctypes.ErrLeaseNotFound) }
