// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

const (
	// maxEntryBytes bounds the commands that share a log entry. A single
	// larger command gets an entry of its own.
	maxEntryBytes = 512 << 10
	// entriesInFlight is how many entries may be on their way to disk: while
	// one is flushed the next one fills.
	entriesInFlight = 2
	// maxWaiting is how many requests may wait for an entry; more block their
	// callers, which is the back-pressure that they should feel.
	maxWaiting = 4096
)

// proposer puts the writes of many clients into few log entries.
//
// Each of its workers in turn gathers what is waiting into an entry, hands it
// to raft while it still holds the lock, and then waits for it without the
// lock: so entries reach raft in the order in which they were gathered.
type proposer struct {
	raft  *raft.Raft
	queue chan *proposal
	mu    sync.Mutex // held from gathering to handing over
	// admit refuses writes that must not be tried, such as when the disk is full.
	admit func() error
	// left is what did not fit the last entry. Guarded by mu.
	left *proposal

	stopping chan struct{} // closed to end the workers
	stopped  chan struct{} // closed when they are gone
	workers  sync.WaitGroup
}

// A proposal is one command and its answer.
type proposal struct {
	req   mvcc.Request
	size  int
	taken atomic.Bool // by a worker, or by the caller that gave up
	done  chan mvcc.Result
}

func newProposer(r *raft.Raft, admit func() error) *proposer {
	return &proposer{
		raft: r, queue: make(chan *proposal, maxWaiting), admit: admit,
		stopping: make(chan struct{}), stopped: make(chan struct{}),
	}
}

func (p *proposer) start() {
	for range entriesInFlight {
		p.workers.Go(p.run)
	}
}

// stop ends the workers once the entries that they wait for are answered.
// What is still waiting, and what comes later, fails.
func (p *proposer) stop() {
	close(p.stopping)
	p.workers.Wait()
	close(p.stopped)
}

// propose runs a command through the log and waits for its result. When ctx
// ends first, the command may or may not have happened, unless it was still
// waiting, in which case it never will.
func (p *proposer) propose(ctx context.Context, req mvcc.Request) (any, error) {
	if err := p.admit(); err != nil {
		return nil, err
	}
	c := &proposal{req: req, size: mvcc.CommandSize(req), done: make(chan mvcc.Result, 1)}
	select {
	case p.queue <- c:
	case <-ctx.Done():
		return nil, contextError(ctx)
	case <-p.stopping:
		return nil, ErrClosed
	}
	select {
	case res := <-c.done:
		return res.Response, res.Err
	case <-ctx.Done():
		c.taken.CompareAndSwap(false, true)
		return nil, contextError(ctx)
	case <-p.stopped:
	}
	select {
	case res := <-c.done: // answered just before the end
		return res.Response, res.Err
	default:
		return nil, ErrClosed
	}
}

// run is the body of each worker; it ends when stopping is closed.
func (p *proposer) run() {
	for {
		batch, future := p.next()
		if batch == nil {
			return
		}
		p.answer(batch, future)
	}
}

// next gathers a batch and gives it to raft.
func (p *proposer) next() ([]*proposal, raft.ApplyFuture) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		first := p.left
		p.left = nil
		if first == nil {
			select {
			case <-p.stopping:
				return nil, nil
			case first = <-p.queue:
			}
		}
		// A fresh buffer for each entry: raft keeps it, and may still be
		// sending it to a slow follower when this worker is long done.
		if batch, entry := p.gather(first); len(batch) > 0 {
			return batch, p.raft.Apply(entry, 0)
		}
	}
}

func (p *proposer) gather(first *proposal) ([]*proposal, []byte) {
	var batch []*proposal
	entry := mvcc.NewEntry(make([]byte, 0, first.size+1))
	for c := first; c != nil; {
		if len(batch) > 0 && len(entry)+c.size > maxEntryBytes {
			p.left = c
			break
		}
		if c.taken.CompareAndSwap(false, true) {
			grown, err := mvcc.AppendCommand(entry, c.req)
			if err != nil {
				c.done <- mvcc.Result{Err: err}
			} else {
				entry, batch = grown, append(batch, c)
			}
		}
		select {
		case c = <-p.queue:
		default:
			c = nil
		}
	}
	return batch, entry
}

func (p *proposer) answer(batch []*proposal, future raft.ApplyFuture) {
	err := future.Error()
	if err != nil {
		err = proposeError(err)
	}
	var results []mvcc.Result
	if err == nil {
		results = future.Response().([]mvcc.Result)
	}
	for i, c := range batch {
		if err != nil {
			c.done <- mvcc.Result{Err: err}
		} else {
			c.done <- results[i]
		}
	}
}
