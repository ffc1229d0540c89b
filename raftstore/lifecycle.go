// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// lifecycle is a store's own start and end: its context, its tasks and Close.
type lifecycle struct {
	ctx    context.Context // ends when the store closes
	cancel context.CancelFunc
	ready  chan struct{} // closed when WaitReady would have returned

	mu     sync.Mutex     // held to start a task, and to set ending
	ending bool           // no further task may start
	tasks  sync.WaitGroup // all that DESIGN.md lists as started by Open, and every watch

	once    sync.Once
	stopped chan struct{} // closed when raft has ended
	closed  chan struct{} // closed when nothing runs any more
	err     error         // the result of Close; to be read once closed is closed
}

func (l *lifecycle) beginTask() {
	l.ready, l.stopped, l.closed = make(chan struct{}), make(chan struct{}), make(chan struct{})
	l.ctx, l.cancel = context.WithCancel(context.Background())
}

// spawn runs a task that Close waits for, unless the store is closing.
func (l *lifecycle) spawn(task func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ending {
		return false
	}
	l.tasks.Go(task)
	return true
}

// spawnSingle runs a task, unless one that was spawned with the same flag still runs.
func (l *lifecycle) spawnSingle(running *atomic.Bool, task func()) {
	if running.CompareAndSwap(false, true) && !l.spawn(func() {
		defer running.Store(false)
		task()
	}) {
		running.Store(false)
	}
}

// endTasks waits for the tasks, and prevents that others start.
func (l *lifecycle) endTasks() {
	l.mu.Lock()
	l.ending = true
	l.mu.Unlock()
	l.tasks.Wait()
}

// await waits for the result of a request to raft. It also returns when raft has ended, which may leave a request
// without an answer: raft's FSM goroutine drops those that wait for it.
func (r *replica) await(future raft.Future) error {
	answer := make(chan error, 1)
	go func() { answer <- future.Error() }()
	select {
	case err := <-answer:
		return err
	case <-r.stopped:
		return raft.ErrRaftShutdown
	}
}

// Close stops the store. It returns when nothing of the store runs any more, or when ctx ends, since the disk may be
// stalled. Writes that were not acknowledged by then fail, and their outcome is open.
func (s *Store) Close(ctx context.Context) error {
	s.replica.once.Do(func() {
		go func() {
			defer close(s.replica.closed)
			s.replica.err = s.close()
		}()
	})
	select {
	case <-s.replica.closed:
		return s.replica.err
	case <-ctx.Done():
		return fmt.Errorf("raftstore: still stopping, the disk may be stalled: %w", ctx.Err())
	}
}

func (s *Store) close() error {
	s.cluster.TransferBeforeStop()
	s.writer.proposer.endWorkers()
	s.replica.cancel()
	s.leadership.close()
	s.replica.dir.Abort() // otherwise raft would wait for a full disk
	stopped := s.replica.raft.Shutdown()
	s.replication.close() // raft may be waiting for an answer from another server
	err := stopped.Error()
	close(s.replica.stopped)
	s.writer.proposer.stop()
	s.replica.endTasks()
	if err != nil {
		err = fmt.Errorf("raftstore: stop: %w", err)
	}
	return errors.Join(err, s.replica.dir.Close())
}
