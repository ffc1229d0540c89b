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
)

const (
	fenceKey     = "coracle-term" // metadata of a write that only the leader of that term may do
	fenceWriters = 8              // writes that are under way at any time, so that a pause meets some
	fenceTimeout = 15 * time.Second
)

// fenced is a write that was sent to a leader with its term.
type fenced struct {
	Term uint64 `json:"term"`
	Op
}

// reign is what was seen of a leader: a revision that it answered itself.
type reign struct {
	Term uint64 `json:"term"`
	Rev  int64  `json:"rev"`
}

// fencing writes as the leader's own loops do.
type fencing struct {
	w *workload

	mu     sync.Mutex
	writes []*fenced
	reigns []reign
}

// run writes at whoever leads until ctx ends, and waits for what is under way.
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
// same term; whoever has answered it, all of its writes up to the revision are older than what the term adds.
func (f *fencing) observe(ctx context.Context, etc *clientv3.Client, term uint64) {
	f.mu.Lock()
	known := slices.ContainsFunc(f.reigns, func(r reign) bool { return r.Term == term })
	f.mu.Unlock()
	if known {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	resp, err := etc.Get(ctx, f.w.prefix+"f/0")
	if err != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reigns = append(f.reigns, reign{term, resp.Header.Revision})
}

func (f *fencing) write(etc *clientv3.Client, s *server, term uint64, key string) {
	w := &fenced{Term: term}
	w.Kind, w.Key, w.Value, w.Server, w.Call = KindPut, key, f.w.value(0), s.name, f.w.h.now()
	ctx, cancel := context.WithTimeout(context.Background(), fenceTimeout)
	defer cancel()
	resp, err := etc.Put(metadata.AppendToOutgoingContext(ctx, fenceKey, strconv.FormatUint(term, 10)), key, w.Value)
	w.Return, w.Outcome = f.w.h.now(), outcomeOf(err)
	if err != nil {
		w.Err = err.Error()
	} else {
		w.Rev = resp.Header.Revision
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writes = append(f.writes, w)
}

// check checks that no write of a term took effect after a later term had been seen to serve.
func (f *fencing) check(seen *timeline) []error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return checkFences(f.writes, f.reigns, seen)
}

func checkFences(writes []*fenced, reigns []reign, seen *timeline) []error {
	var errs []error
	first := map[uint64]int64{} // term → least revision that was seen of it
	note := func(term uint64, rev int64) {
		if old, ok := first[term]; !ok || rev < old {
			first[term] = rev
		}
	}
	for _, r := range reigns {
		note(r.Term, r.Rev)
	}
	done := map[*fenced]int64{}
	for _, w := range writes {
		e, there := seen.byValue[w.Value]
		switch {
		case there && w.Outcome == OutcomeFailed:
			errs = append(errs, fmt.Errorf("term %d: %s: refused, but the watches saw %q", w.Term, describeOp(&w.Op), e))
		case !there && w.Outcome == OutcomeOK:
			errs = append(errs, fmt.Errorf("term %d: %s: acknowledged, but no watch saw it", w.Term, describeOp(&w.Op)))
		case there && w.Outcome == OutcomeOK && e.Mod != w.Rev:
			errs = append(errs, fmt.Errorf("term %d: %s: acknowledged, but the watches saw %q", w.Term, describeOp(&w.Op), e))
		}
		if there {
			done[w] = e.Mod
			// Its own revision belongs to the term, but the write itself may be the first to be seen.
			note(w.Term, e.Mod)
		}
	}
	for w, rev := range done {
		for term, begun := range first {
			if term > w.Term && rev > begun && len(errs) < 10 {
				errs = append(errs, fmt.Errorf("term %d: %s happened at revision %d, after term %d had served revision %d",
					w.Term, describeOp(&w.Op), rev, term, begun))
			}
		}
	}
	return errs
}
