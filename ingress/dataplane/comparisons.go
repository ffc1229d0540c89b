// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/ingress/password"
)

// comparisonWait is the value of comparisons.wait, except in tests.
const comparisonWait = 10 * time.Second

// comparisons limits how many passwords are compared at a time, and how many requests with expressions beyond
// freeSteps. They use half of the processors, so that other requests are served. Of each tenant, only one at a time is
// compared or waits for a processor.
type comparisons struct {
	keyQueues
	processors chan struct{}
	wait       time.Duration // limits how long a login or a request waits
	loginKey   [32]byte      // of the hashes by which correct logins are remembered
}

func newComparisons() *comparisons {
	c := &comparisons{
		keyQueues: keyQueues{byKey: map[string]*keyQueue{}}, wait: comparisonWait,
		processors: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
	}
	_, _ = rand.Read(c.loginKey[:]) // never fails
	return c
}

// acquire waits for the place of a key and then for a processor. ok is false when it did not get both within c.wait.
func (c *comparisons) acquire(ctx context.Context, key string) (release func(), ok bool) {
	place, release := c.join(key)
	limit := time.NewTimer(c.wait)
	defer limit.Stop()
	for _, one := range [...]chan struct{}{place, c.processors} {
		select {
		case one <- struct{}{}:
			before := release
			release = func() {
				<-one
				before()
			}
		case <-ctx.Done():
			release()
			panic(http.ErrAbortHandler)
		case <-limit.C:
			release()
			return nil, false
		}
	}
	return release, true
}

// verify compares a password. It remembers correct logins, by a keyed hash, since a comparison takes up to a second. It
// does not remember wrong ones. Few comparisons run at a time.
func (c *comparisons) verify(ctx context.Context, namespace string, list *userList, user, secret string) (bool, error) {
	hash, ok := list.hashes[user]
	if !ok {
		return false, nil
	}
	mac := hmac.New(sha256.New, c.loginKey[:])
	fmt.Fprintf(mac, "%d %s%s", len(user), user, secret)
	key := [sha256.Size]byte(mac.Sum(nil))
	list.mu.Lock()
	_, known := list.verified[key]
	list.mu.Unlock()
	if known {
		return true, nil
	}
	release, ok := c.acquire(ctx, "login "+namespace)
	if !ok {
		return false, errors.New("too many passwords are being compared")
	}
	defer release()
	good := password.Verify(hash, secret)
	if good {
		list.mu.Lock()
		if len(list.verified) >= maxVerified {
			clear(list.verified)
		}
		list.verified[key] = struct{}{}
		list.mu.Unlock()
	}
	return good, nil
}

// keyQueues lets one request of each key run at a time. The others wait.
type keyQueues struct {
	mu    sync.Mutex
	byKey map[string]*keyQueue
}

type keyQueue struct {
	place chan struct{}
	users int // requests that hold the place or wait for it
}

// join returns the place for a key. A request that sends to the channel holds the place. leave must be called when the
// place is not used any more.
func (t *keyQueues) join(key string) (place chan struct{}, leave func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	one := t.byKey[key]
	if one == nil {
		one = &keyQueue{place: make(chan struct{}, 1)}
		t.byKey[key] = one
	}
	one.users++
	return one.place, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(t.byKey, key)
		}
	}
}
