// SPDX-License-Identifier: Apache-2.0

// Package testkv gives tests a store whose leader dies at a chosen call, so that what has to survive that can be tried
// at each of its steps. It is for tests only.
package testkv

import (
	"context"
	"errors"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// ErrLeader is the answer to the call at which the leader dies.
var ErrLeader = errors.New("the leader died")

// Mortal is a store that fails one call: a leader died, before it had done what it was asked for, or after it. The
// calls before and behind that one are the store's.
type Mortal struct {
	clientv3.KV
	// Dies is the number of that call, from 1 on.
	Dies int
	// After says that the call is done, and its answer is lost.
	After bool

	mu    sync.Mutex
	calls int
}

// Died says whether there were so many calls.
func (m *Mortal) Died() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls >= m.Dies
}

// call does one call.
func (m *Mortal) call(do func() error) error {
	m.mu.Lock()
	m.calls++
	dies := m.calls == m.Dies
	m.mu.Unlock()
	switch {
	case !dies:
		return do()
	case m.After:
		return errors.Join(ErrLeader, do())
	}
	return ErrLeader
}

// Get is clientv3.KV's.
func (m *Mortal) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (out *clientv3.GetResponse, err error) {
	err = m.call(func() (err error) { out, err = m.KV.Get(ctx, key, opts...); return err })
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Put is clientv3.KV's.
func (m *Mortal) Put(ctx context.Context, key, val string, opts ...clientv3.OpOption) (out *clientv3.PutResponse, err error) {
	err = m.call(func() (err error) { out, err = m.KV.Put(ctx, key, val, opts...); return err })
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Txn is clientv3.KV's.
func (m *Mortal) Txn(ctx context.Context) clientv3.Txn { return &txn{Txn: m.KV.Txn(ctx), m: m} }

type txn struct {
	clientv3.Txn
	m *Mortal
}

func (t *txn) If(cs ...clientv3.Cmp) clientv3.Txn   { t.Txn = t.Txn.If(cs...); return t }
func (t *txn) Then(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Then(ops...); return t }
func (t *txn) Else(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Else(ops...); return t }

func (t *txn) Commit() (out *clientv3.TxnResponse, err error) {
	err = t.m.call(func() (err error) { out, err = t.Txn.Commit(); return err })
	if err != nil {
		return nil, err
	}
	return out, nil
}
