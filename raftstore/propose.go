// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

const (
	// maxEntryBytes bounds the commands that share a log entry. A single
	// larger command gets an entry of its own.
	maxEntryBytes = 512 << 10
	// entriesInFlight is how many entries may be on their way to disk: while
	// one is flushed the next one fills.
	entriesInFlight = 2
	// callsInFlight is how many batches a follower may have at the leader.
	callsInFlight = 4
	// maxWaiting is how many requests may wait for a batch; more block their
	// callers, which is the back-pressure that they should feel.
	maxWaiting = 4096
)

// proposer puts the commands of many clients into few batches: log entries if
// this server leads, calls to the leader if not.
//
// Each of its workers in turn gathers what is waiting into a batch, hands it on
// while it still holds the lock, and then waits for it without the lock: so
// entries reach raft in the order in which they were gathered.
type proposer struct {
	// send hands a batch on. It may block for as long as the receiver is busy.
	send  func(entry []byte) (wait func() ([]mvcc.Result, error))
	queue chan *proposal
	// turn has a capacity of 1: a token in it is held from gathering to handing
	// over. It is a channel, for a mutex that is held while nothing happens
	// would stop the time of tests.
	turn chan struct{}
	// left is what did not fit the last batch. Guarded by turn.
	left *proposal

	stopping chan struct{} // closed to end the workers
	stopped  chan struct{} // closed when they are gone, or given up
	workers  sync.WaitGroup
	ending   sync.Once
	idle     chan struct{} // closed when the workers are gone
}

// lostAfter is how long a batch's answer may take once its receiver has been
// asked to stop, and then once it has stopped. Raft's FSM goroutine ends
// without answering for the entries that wait for it, so waiting on would be
// for ever.
const lostAfter = time.Second

// A proposal is a command, or those that another server gathered, and its
// answer.
type proposal struct {
	command  mvcc.Command
	gathered []byte // mvcc.Encoded commands, instead of command
	count    int    // of commands
	size     int
	owned    atomic.Bool // by a worker, or by the caller that gave up
	done     chan outcome
}

type outcome struct {
	results []mvcc.Result
	err     error
}

// errUntried says that a command was not handed to anyone, and never will be.
var errUntried = errors.New("raftstore: not tried")

func newProposer(workers int, send func([]byte) func() ([]mvcc.Result, error)) *proposer {
	p := &proposer{
		send: send, queue: make(chan *proposal, maxWaiting), turn: make(chan struct{}, 1),
		stopping: make(chan struct{}), stopped: make(chan struct{}), idle: make(chan struct{}),
	}
	for range workers {
		p.workers.Go(p.run)
	}
	return p
}

// end tells the workers to take no more batches, and waits until those under
// way are answered, for a while: so hardly anything is under way when the
// receiver stops.
func (p *proposer) end() {
	p.ending.Do(func() {
		close(p.stopping)
		go func() {
			p.workers.Wait()
			close(p.idle)
		}()
	})
	timer := time.NewTimer(lostAfter)
	defer timer.Stop()
	select {
	case <-p.idle:
	case <-timer.C:
	}
}

// stop ends the workers once the batches that they wait for are answered, or
// will never be. What is still waiting, and what comes later, fails. It is for
// when the receiver has stopped.
func (p *proposer) stop() {
	p.end()
	close(p.stopped)
}

// bounds say what ends the wait for an answer, beside the answer and the context. A nil channel never does.
type bounds struct {
	moved <-chan struct{} // the leadership in which it was asked for is over
	late  <-chan struct{} // it takes too long, see patience
}

// propose runs one command and waits for its result.
func (p *proposer) propose(ctx context.Context, b bounds, c mvcc.Command) (mvcc.Result, error) {
	results, err := p.submit(ctx, b, &proposal{
		command: c, count: 1, size: mvcc.CommandSize(c), done: make(chan outcome, 1),
	})
	if err != nil {
		return mvcc.Result{}, err
	}
	return results[0], nil
}

// proposeAll runs commands that another server gathered.
func (p *proposer) proposeAll(ctx context.Context, b bounds, encoded []byte, count int) ([]mvcc.Result, error) {
	return p.submit(ctx, b, &proposal{gathered: encoded, count: count, size: len(encoded), done: make(chan outcome, 1)})
}

// submit waits for a proposal's answer. When ctx or one of its bounds ends first, the commands
// may or may not have happened, unless the error is errUntried: then they never will.
func (p *proposer) submit(ctx context.Context, b bounds, c *proposal) ([]mvcc.Result, error) {
	if ctx.Err() != nil {
		return nil, errUntried // the select below might choose the queue all the same
	}
	select {
	case p.queue <- c:
	case <-ctx.Done():
		return nil, errUntried
	case <-b.moved:
		return nil, errUntried
	case <-b.late:
		return nil, rpctypes.ErrGRPCTimeout
	case <-p.stopping:
		return nil, ErrClosed
	}
	var err error
	untried := errUntried
	select {
	case a := <-c.done:
		return a.results, a.err
	case <-ctx.Done():
		err = contextError(ctx)
	case <-b.moved:
		err = errMoved
	case <-b.late:
		err, untried = rpctypes.ErrGRPCTimeout, rpctypes.ErrGRPCTimeout
	case <-p.stopped:
		err = ErrClosed
	}
	if c.owned.CompareAndSwap(false, true) {
		return nil, untried
	}
	select {
	case a := <-c.done: // answered just before the end
		return a.results, a.err
	default:
		return nil, err
	}
}

// run is the body of each worker; it ends when stopping is closed.
func (p *proposer) run() {
	for {
		batch, wait := p.next()
		if batch == nil {
			return
		}
		results, err := wait()
		for _, c := range batch {
			if err != nil {
				c.done <- outcome{err: err}
				continue
			}
			c.done <- outcome{results: results[:c.count:c.count]}
			results = results[c.count:]
		}
	}
}

// next gathers a batch and hands it on.
func (p *proposer) next() ([]*proposal, func() ([]mvcc.Result, error)) {
	p.turn <- struct{}{}
	defer func() { <-p.turn }()
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
			return batch, p.send(entry)
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
		if c.owned.CompareAndSwap(false, true) {
			if c.gathered != nil {
				entry, batch = mvcc.AppendEncoded(entry, c.gathered), append(batch, c)
			} else if grown, err := mvcc.AppendCommand(entry, c.command); err != nil {
				c.done <- outcome{err: err}
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
