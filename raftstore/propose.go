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
	// maxEntryBytes bounds the commands that share a log entry, in bytes. A single larger command gets an entry of its
	// own.
	maxEntryBytes = 512 << 10
	// entriesInFlight is how many entries may be on their way to disk: while one is flushed, the next is gathered.
	entriesInFlight = 2
	// callsInFlight is how many batches a follower may have sent to the leader without an answer yet.
	callsInFlight = 4
	// maxWaiting is how many requests may wait for a batch. Further callers block, as back-pressure.
	maxWaiting = 4096
)

// proposer gathers the commands of many clients into few batches. A batch is a log entry if this server leads,
// otherwise a call to the leader.
//
// Its workers take turns. The one that has the turn gathers the waiting commands into a batch and sends the batch. Then
// it gives up the turn, and waits for the answer. So entries reach raft in the order in which they were gathered.
type proposer struct {
	// send sends a batch. It may block for as long as the receiver is busy. deleting are the numbers of the commands,
	// from 0 and in order, that are steps of a deletion.
	send  func(entry []byte, deleting []int) (wait func() ([]mvcc.Result, error))
	level func() int // the cluster's
	queue chan *proposal
	// batchToken has a capacity of 1: a worker holds a token in it while it gathers and sends a batch. It is not a
	// mutex, since a mutex that an idle worker holds would stop the time of tests (testing/synctest).
	batchToken chan struct{}
	// leftover is the proposal that did not fit into the last batch. Guarded by batchToken.
	leftover *proposal

	stopping chan struct{} // closed to end the workers
	stopped  chan struct{} // closed when the workers have ended, or were given up
	workers  sync.WaitGroup
	ending   sync.Once
	idle     chan struct{} // closed when the workers have ended
}

// lostAfter is how long a batch's answer may take once its receiver has been asked to stop, and then again once it has
// stopped. Raft's FSM goroutine ends without an answer for the entries that wait for it.
const lostAfter = time.Second

// A proposal is a command, or the commands that another server gathered, with the channel for the answer.
type proposal struct {
	command  mvcc.Command
	gathered []byte // mvcc.Encoded commands, instead of command
	count    int    // of commands
	size     int
	owned    atomic.Bool // set once by a worker, or by a caller that gives up
	done     chan outcome
}

type outcome struct {
	results []mvcc.Result
	err     error
}

// errUntried says that a command was not sent to a server, and never will be.
var errUntried = errors.New("raftstore: not tried")

func newProposer(workers int, level func() int, send func([]byte, []int) func() ([]mvcc.Result, error)) *proposer {
	p := &proposer{
		send: send, level: level, queue: make(chan *proposal, maxWaiting), batchToken: make(chan struct{}, 1),
		stopping: make(chan struct{}), stopped: make(chan struct{}), idle: make(chan struct{}),
	}
	for range workers {
		p.workers.Go(p.run)
	}
	return p
}

// endWorkers stops the workers from taking more batches, and waits up to lostAfter for the answers of those under way.
// So hardly any batch is under way when the receiver stops.
func (p *proposer) endWorkers() {
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

// stop ends the workers once the batches that they wait for are answered, or will never be. Waiting and later commands
// fail. It must be called after the receiver has stopped.
func (p *proposer) stop() {
	p.endWorkers()
	close(p.stopped)
}

// bounds end the wait for an answer early. A nil channel never ends it.
type bounds struct {
	leadershipEnded <-chan struct{} // closed when the leadership that the command was sent in is over
	timedOut        <-chan struct{} // closed when the write has taken too long, see timeLimit
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

// submit waits for a proposal's answer. When ctx or one of its bounds ends first, the commands may or may not have
// happened. If the error is errUntried they never will.
func (p *proposer) submit(ctx context.Context, b bounds, c *proposal) ([]mvcc.Result, error) {
	if ctx.Err() != nil {
		return nil, errUntried // the select below might choose the queue even so
	}
	select {
	case p.queue <- c:
	case <-ctx.Done():
		return nil, errUntried
	case <-b.leadershipEnded:
		return nil, errUntried
	case <-b.timedOut:
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
	case <-b.leadershipEnded:
		err = errMoved
	case <-b.timedOut:
		err, untried = rpctypes.ErrGRPCTimeout, rpctypes.ErrGRPCTimeout
	case <-p.stopped:
		err = ErrClosed
	}
	if c.owned.CompareAndSwap(false, true) {
		return nil, untried
	}
	select {
	case a := <-c.done: // answered just before the wait ended
		return a.results, a.err
	default:
		return nil, err
	}
}

// run is the body of each worker. It returns when stopping is closed.
func (p *proposer) run() {
	for {
		batch, wait := p.sendBatch()
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

// sendBatch gathers a batch and sends it.
func (p *proposer) sendBatch() ([]*proposal, func() ([]mvcc.Result, error)) {
	p.batchToken <- struct{}{}
	defer func() { <-p.batchToken }()
	for {
		first := p.leftover
		p.leftover = nil
		if first == nil {
			select {
			case <-p.stopping:
				return nil, nil
			case first = <-p.queue:
			}
		}
		// Each entry has a new buffer: raft keeps it, and may still be sending it to a slow follower when this worker
		// has its answer.
		if batch, entry, deleting := p.gather(first); len(batch) > 0 {
			return batch, p.send(entry, deleting)
		}
	}
}

func (p *proposer) gather(first *proposal) (batch []*proposal, _ []byte, deleting []int) {
	commands := 0
	entry := mvcc.NewEntry(make([]byte, 0, first.size+1))
	for c := first; c != nil; {
		if len(batch) > 0 && len(entry)+c.size > maxEntryBytes {
			p.leftover = c
			break
		}
		if c.owned.CompareAndSwap(false, true) {
			if c.gathered != nil {
				entry, batch = mvcc.AppendEncoded(entry, c.gathered), append(batch, c)
				commands += c.count
			} else if grown, err := mvcc.AppendCommand(entry, c.command, p.level()); err != nil {
				c.done <- outcome{err: err}
			} else {
				entry, batch = grown, append(batch, c)
				if c.command.Deleting {
					deleting = append(deleting, commands)
				}
				commands++
			}
		}
		select {
		case c = <-p.queue:
		default:
			c = nil
		}
	}
	return batch, entry, deleting
}
