// SPDX-License-Identifier: Apache-2.0

// Package gatewayuse determines whether the cluster has objects of the Gateway API. It follows their keys in the store,
// and never sends requests to the API server.
package gatewayuse

import (
	"context"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/coracle-k8s/coracle/ingress/gateway"
	"github.com/coracle-k8s/coracle/ingress/gatewayapi"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// gatewayKeys is the prefix of the API server's keys of Gateway API objects.
	gatewayKeys = "/registry/" + gatewayv1.GroupName + "/"
	// gatewayClassKey is the key of the class that every cluster has.
	gatewayClassKey = gatewayKeys + gatewayapi.Classes + "/" + gateway.ClassName
)

// Use follows in the store whether there are objects of the Gateway API. It sends no requests to the API server: the
// first request for a kind makes the API server compile the kind's rules, which takes some 25 MB of memory for all
// kinds. A watch takes more.
type Use struct {
	kv      clientv3.KV
	watcher clientv3.Watcher

	mu       sync.Mutex
	revision int64 // the store's revision at which used was read
	used     bool
	changes  timers.Broadcast
}

// New reads whether there are such objects. Run has to be called after that.
func New(ctx context.Context, kv clientv3.KV, watcher clientv3.Watcher) (*Use, error) {
	u := &Use{kv: kv, watcher: watcher}
	_, err := u.read(ctx)
	return u, err
}

// Used implements gatewayapi.Use.
func (u *Use) Used() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.used
}

// Changed implements gatewayapi.Use.
func (u *Use) Changed() <-chan struct{} { return u.changes.Next() }

// read updates used and returns the store's revision at which it was read.
func (u *Use) read(ctx context.Context, o ...clientv3.OpOption) (int64, error) {
	found, err := u.kv.Get(ctx, gatewayKeys, append(o, clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(2))...)
	if err != nil {
		return 0, fmt.Errorf("reading whether there are objects of the Gateway API: %w", err)
	}
	used := false
	for _, pair := range found.Kvs {
		used = used || string(pair.Key) != gatewayClassKey
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if found.Header.Revision < u.revision { // another read was faster
		return found.Header.Revision, nil
	}
	u.revision = found.Header.Revision
	if used != u.used {
		u.used = used
		u.changes.Send()
	}
	return found.Header.Revision, nil
}

// UnusedNow reads this server's replica of the store. A client that received an event from this replica gets a result
// that includes that event.
func (u *Use) UnusedNow(ctx context.Context) bool {
	_, err := u.read(ctx, clientv3.WithSerializable())
	return err == nil && !u.Used()
}

// Run follows the store until ctx is done.
func (u *Use) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if revision, err := u.read(ctx); err == nil {
			u.follow(ctx, revision+1)
		}
		select { // the store has no leader, or has compacted the revision
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// follow reads again whenever an object was added or deleted, until the watch ends.
func (u *Use) follow(ctx context.Context, from int64) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for r := range u.watcher.Watch(ctx, gatewayKeys, clientv3.WithPrefix(), clientv3.WithRev(from)) {
		if r.Err() != nil {
			return
		}
		used, matters := u.Used(), false
		for _, e := range r.Events {
			matters = matters || (e.Type == clientv3.EventTypeDelete) == used
		}
		if !matters {
			continue
		}
		if _, err := u.read(ctx, clientv3.WithSerializable()); err != nil { // it has what the watch delivered
			return
		}
	}
}
