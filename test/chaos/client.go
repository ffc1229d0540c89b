// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/coracle-k8s/coracle/test/history"
)

const (
	singleKeys = 6               // keys that are used one by one
	groupKeys  = 4               // keys at most that are used together
	keysLive   = 8 * time.Second // then clients turn to new keys, so that histories stay short
	groupsLive = 4 * time.Second
	thinkTime  = 30 * time.Millisecond // at most, between two operations
)

// workload is what the clients of a round do.
type workload struct {
	c      *cluster
	h      *recorder
	prefix string // of all keys of the round
	seed   uint64

	clients atomic.Int64
	values  atomic.Int64
	tasks   sync.WaitGroup
}

// client does one operation after the other against one server.
type client struct {
	w   *workload
	id  int
	s   *server
	r   *rand.Rand
	etc *clientv3.Client

	seen map[string]history.KV // what it last saw of each key, for comparisons
}

// run has a client do operations until ctx ends. What it has begun it finishes.
func (w *workload) run(ctx context.Context, s *server, step func(*client, context.Context)) error {
	etc, err := s.connect()
	if err != nil {
		return err
	}
	id := int(w.clients.Add(1))
	cl := &client{w: w, id: id, s: s, etc: etc, r: rand.New(rand.NewPCG(w.seed, uint64(id))), seen: map[string]history.KV{}}
	w.tasks.Go(func() {
		defer etc.Close()
		for ctx.Err() == nil {
			step(cl, ctx)
			pause(ctx, time.Duration(cl.r.Int64N(int64(thinkTime))))
		}
	})
	return nil
}

// start runs the round's clients of a server.
func (w *workload) start(ctx context.Context, s *server) error {
	return errors.Join(
		w.run(ctx, s, (*client).single), w.run(ctx, s, (*client).single), w.run(ctx, s, (*client).group),
	)
}

// hop runs a client that turns to another server with every operation, and hardly thinks: one that answers an older
// state than another did just before meets it.
func (w *workload) hop(ctx context.Context) {
	id := int(w.clients.Add(1))
	cl := &client{w: w, id: id, r: rand.New(rand.NewPCG(w.seed, uint64(id))), seen: map[string]history.KV{}}
	w.tasks.Go(func() {
		connected := map[*server]*clientv3.Client{}
		defer func() {
			for _, etc := range connected {
				etc.Close()
			}
		}()
		for ctx.Err() == nil {
			all := w.c.all()
			s := all[cl.r.IntN(len(all))]
			etc := connected[s]
			if etc == nil {
				var err error
				if etc, err = s.connect(); err != nil {
					return
				}
				connected[s] = etc
			}
			cl.s, cl.etc = s, etc
			cl.single(ctx)
			pause(ctx, time.Duration(cl.r.Int64N(int64(thinkTime/10))))
		}
	})
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// value is one that no other client writes.
func (w *workload) value(client int) string { return fmt.Sprintf("%d.%d", client, w.values.Add(1)) }

// do runs an operation and keeps what came of it.
func (cl *client) do(o *history.Op, call func(ctx context.Context) error) {
	timeouts := []time.Duration{300 * time.Millisecond, time.Second, 3 * time.Second}
	ctx, cancel := context.WithTimeout(context.Background(), timeouts[cl.r.IntN(len(timeouts))])
	defer cancel()
	boot := cl.s.boots.Load()
	o.Client, o.Server, o.Call = cl.id, cl.s.name, cl.w.h.now()
	err := call(ctx)
	o.Return = cl.w.h.now()
	if cl.s.boots.Load() == boot {
		o.Boot = int(boot)
	}
	o.Outcome = outcomeOf(err)
	if err != nil {
		o.Err = err.Error()
	}
	cl.w.h.add(o)
	if err != nil {
		pause(context.Background(), time.Duration(20+cl.r.IntN(80))*time.Millisecond)
	}
}

// outcomeOf says what an error says about a write. Only where the contract says that it was not done, it was not.
func outcomeOf(err error) string {
	switch {
	case err == nil:
		return history.OutcomeOK
	case errors.Is(err, rpctypes.ErrNoSpace), isFenced(err):
		return history.OutcomeFailed
	}
	switch grpcstatus.Code(err) {
	case codes.InvalidArgument, codes.NotFound, codes.OutOfRange, codes.Unimplemented:
		return history.OutcomeFailed
	}
	var e rpctypes.EtcdError
	if errors.As(err, &e) {
		switch e.Code() {
		case codes.InvalidArgument, codes.NotFound, codes.OutOfRange:
			return history.OutcomeFailed
		}
	}
	return history.OutcomeMaybe
}

func isFenced(err error) bool { return err != nil && strings.Contains(err.Error(), "fenced") }

// single does an operation on one of the keys that are used alone.
func (cl *client) single(context.Context) {
	generation := cl.w.h.now() / int64(keysLive)
	key := fmt.Sprintf("%sk/%d/%d", cl.w.prefix, generation, cl.r.IntN(singleKeys))
	o := &history.Op{Key: key}
	switch n := cl.r.IntN(100); {
	case n < 30:
		cl.put(o)
	case n < 60:
		cl.get(o, history.KindGet)
	case n < 70:
		cl.get(o, history.KindSerializable, clientv3.WithSerializable())
	case n < 78:
		cl.delete(o)
	case n < 95:
		o.Kind, o.Expect = history.KindCAS, cl.seen[key].Mod
		cl.cas(o, clientv3.Compare(clientv3.ModRevision(key), "=", o.Expect))
	default:
		o.Kind, o.ExpectV = history.KindCASValue, cl.seen[key].Value
		cl.cas(o, clientv3.Compare(clientv3.Value(key), "=", o.ExpectV))
	}
}

func (cl *client) put(o *history.Op) {
	value := cl.w.value(cl.id)
	o.Kind, o.Puts = history.KindPut, []history.KV{{Key: o.Key, Value: value}}
	cl.do(o, func(ctx context.Context) error {
		resp, err := cl.etc.Put(ctx, o.Key, value)
		if err == nil {
			o.Rev, o.Succeeded = resp.Header.Revision, true
			cl.seen[o.Key] = history.KV{Value: value, Mod: o.Rev}
		}
		return err
	})
}

func (cl *client) get(o *history.Op, kind string, opts ...clientv3.OpOption) {
	o.Kind = kind
	cl.do(o, func(ctx context.Context) error {
		resp, err := cl.etc.Get(ctx, o.Key, opts...)
		if err == nil {
			o.Rev, o.KVs = resp.Header.Revision, history.KVsOf(resp.Kvs)
			cl.saw(o)
		}
		return err
	})
}

func (cl *client) delete(o *history.Op) {
	o.Kind, o.Deletes = history.KindDelete, []string{o.Key}
	cl.do(o, func(ctx context.Context) error {
		resp, err := cl.etc.Delete(ctx, o.Key)
		if err == nil {
			o.Rev, o.Succeeded, o.Deleted = resp.Header.Revision, true, resp.Deleted
			delete(cl.seen, o.Key)
		}
		return err
	})
}

func (cl *client) cas(o *history.Op, compare clientv3.Cmp) {
	o.Puts = []history.KV{{Key: o.Key, Value: cl.w.value(cl.id)}}
	cl.txn(o, compare, []clientv3.Op{clientv3.OpPut(o.Key, o.Puts[0].Value)}, clientv3.OpGet(o.Key))
}

// group does an operation on keys that are used together: a list, or a transaction over several.
func (cl *client) group(context.Context) {
	generation := cl.w.h.now() / int64(groupsLive)
	prefix := fmt.Sprintf("%sm/%d/", cl.w.prefix, generation)
	o := &history.Op{Prefix: prefix}
	if cl.r.IntN(100) < 45 {
		o.Kind = history.KindList
		cl.do(o, func(ctx context.Context) error {
			resp, err := cl.etc.Get(ctx, prefix, clientv3.WithPrefix())
			if err == nil {
				o.Rev, o.KVs = resp.Header.Revision, history.KVsOf(resp.Kvs)
				cl.saw(o)
			}
			return err
		})
		return
	}
	keys := cl.r.Perm(groupKeys)
	name := func(i int) string { return fmt.Sprintf("%s%d", prefix, keys[i]) }
	o.Kind, o.Key, o.Expect = history.KindCAS, name(0), cl.seen[name(0)].Mod
	then := []clientv3.Op{}
	for i := range 1 + cl.r.IntN(groupKeys-1) {
		if i > 0 && cl.r.IntN(3) == 0 {
			o.Deletes = append(o.Deletes, name(i))
			then = append(then, clientv3.OpDelete(name(i)))
			continue
		}
		kv := history.KV{Key: name(i), Value: cl.w.value(cl.id)}
		o.Puts = append(o.Puts, kv)
		then = append(then, clientv3.OpPut(kv.Key, kv.Value))
	}
	compare := clientv3.Compare(clientv3.ModRevision(o.Key), "=", o.Expect)
	cl.txn(o, compare, then, clientv3.OpGet(prefix, clientv3.WithPrefix()))
}

func (cl *client) txn(o *history.Op, compare clientv3.Cmp, then []clientv3.Op, otherwise clientv3.Op) {
	cl.do(o, func(ctx context.Context) error {
		resp, err := cl.etc.Txn(ctx).If(compare).Then(then...).Else(otherwise).Commit()
		if err != nil {
			return err
		}
		o.Rev, o.Succeeded = resp.Header.Revision, resp.Succeeded
		if !o.Succeeded {
			o.KVs = history.KVsOf(resp.Responses[0].GetResponseRange().Kvs)
			cl.saw(o)
			return nil
		}
		for _, kv := range o.Puts {
			cl.seen[kv.Key] = history.KV{Value: kv.Value, Mod: o.Rev}
		}
		for _, key := range o.Deletes {
			delete(cl.seen, key)
		}
		return nil
	})
}

// saw keeps what a read saw.
func (cl *client) saw(o *history.Op) {
	maps.DeleteFunc(cl.seen, func(key string, _ history.KV) bool {
		return key == o.Key || o.Prefix != "" && strings.HasPrefix(key, o.Prefix)
	})
	for _, kv := range o.KVs {
		cl.seen[kv.Key] = kv
	}
}
