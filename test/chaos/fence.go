// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"

	"github.com/coracle-k8s/coracle/test/history"
)

const (
	fenceKey     = "coracle-term" // metadata of a write that only the leader of that term may do
	fenceWriters = 8              // writes that are under way at any time, so that a pause meets some
	fenceTimeout = 15 * time.Second
)

// fencing writes as the leader's own loops do.
type fencing struct {
	w *workload

	mu  sync.Mutex
	ops []*history.Op // writes, and one read of each term
}

// run writes at the leader until ctx ends, and waits for what is under way.
func (f *fencing) run(ctx context.Context) {
	var writers sync.WaitGroup
	defer writers.Wait()
	slots := make(chan struct{}, fenceWriters)
	clients := map[*server]*clientv3.Client{}
	defer func() {
		writers.Wait()
		for _, etc := range clients {
			etc.Close()
		}
	}()
	for n := 0; ctx.Err() == nil; n++ {
		lead, term := f.w.c.leader(ctx)
		if lead == nil {
			pause(ctx, 50*time.Millisecond)
			continue
		}
		etc := clients[lead]
		if etc == nil {
			var err error
			if etc, err = lead.connect(); err != nil {
				return
			}
			clients[lead] = etc
		}
		f.observe(ctx, etc, term)
		for range fenceWriters {
			select {
			case slots <- struct{}{}:
				key, term := fmt.Sprintf("%sf/%d", f.w.prefix, n%3), term
				if n%10 == 0 {
					term-- // of a past that the leader must not know any more
				}
				writers.Go(func() { f.write(etc, lead, term, key); <-slots })
			default:
			}
		}
		pause(ctx, 40*time.Millisecond)
	}
}

// observe notes a revision of a term. The read is the leader's of that term only if it leads before and after, in the
// same term; whichever server has answered it, all of its writes up to the revision are older than what the term adds.
func (f *fencing) observe(ctx context.Context, etc *clientv3.Client, term uint64) {
	f.mu.Lock()
	known := slices.ContainsFunc(f.ops, func(o *history.Op) bool { return o.Kind == history.KindGet && o.Term == term })
	f.mu.Unlock()
	if known {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	o := &history.Op{Kind: history.KindGet, Key: f.w.prefix + "f/0", Term: term, Outcome: history.OutcomeOK, Call: f.w.h.now()}
	resp, err := etc.Get(ctx, o.Key)
	if err != nil {
		return
	}
	o.Return, o.Rev, o.KVs = f.w.h.now(), resp.Header.Revision, history.KVsOf(resp.Kvs)
	f.add(o)
}

func (f *fencing) write(etc *clientv3.Client, s *server, term uint64, key string) {
	value := f.w.value(0)
	o := &history.Op{
		Kind: history.KindPut, Puts: []history.KV{{Key: key, Value: value}}, Server: s.name, Term: term, Call: f.w.h.now(),
	}
	ctx, cancel := context.WithTimeout(context.Background(), fenceTimeout)
	defer cancel()
	resp, err := etc.Put(metadata.AppendToOutgoingContext(ctx, fenceKey, strconv.FormatUint(term, 10)), key, value)
	o.Return, o.Outcome = f.w.h.now(), outcomeOf(err)
	if err != nil {
		o.Err = err.Error()
	} else {
		o.Rev, o.Succeeded = resp.Header.Revision, true
	}
	f.add(o)
}

func (f *fencing) add(o *history.Op) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops = append(f.ops, o)
}
