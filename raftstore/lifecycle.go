// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// handOverWithin bounds the handing over of the leadership at the end.
const handOverWithin = time.Second

// lifecycle is what a store knows of its own beginning and end.
type lifecycle struct {
	ctx    context.Context // ends when the store closes
	cancel context.CancelFunc
	ready  chan struct{} // closed when WaitReady would have returned

	mu     sync.Mutex     // held to start a task, and to forbid it
	ending bool           // no task starts any more
	tasks  sync.WaitGroup // all that DESIGN.md lists as started by Open, and every watch

	once    sync.Once
	stopped chan struct{} // closed when raft has ended
	closed  chan struct{} // closed when nothing runs any more
	err     error         // of Close; readable then
}

func (l *lifecycle) begin() {
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

// endTasks waits for the tasks, and lets none begin.
func (l *lifecycle) endTasks() {
	l.mu.Lock()
	l.ending = true
	l.mu.Unlock()
	l.tasks.Wait()
}

// await waits for what raft was asked to do. Raft may end without an answer:
// its FSM goroutine leaves what waits for it.
func (s *Store) await(future raft.Future) error {
	answer := make(chan error, 1)
	go func() { answer <- future.Error() }()
	select {
	case err := <-answer:
		return err
	case <-s.stopped:
		return raft.ErrRaftShutdown
	}
}

// Close stops the store and waits until nothing of it runs, or ctx ends: a
// disk may hang. Writes that were not acknowledged by then fail, with their
// outcome open.
func (s *Store) Close(ctx context.Context) error {
	s.once.Do(func() {
		go func() {
			defer close(s.closed)
			s.err = s.close()
		}()
	})
	select {
	case <-s.closed:
		return s.err
	case <-ctx.Done():
		return fmt.Errorf("raftstore: still stopping, the disk may hang: %w", ctx.Err())
	}
}

func (s *Store) close() error {
	s.HandOver()
	s.proposer.end()
	s.cancel()
	s.leadership.close()
	s.dir.Abort() // or raft would wait for a full disk
	stopped := s.raft.Shutdown()
	s.replication.close() // raft may be waiting for it
	err := stopped.Error()
	close(s.stopped)
	s.proposer.stop()
	s.endTasks()
	if err != nil {
		err = fmt.Errorf("raftstore: stop: %w", err)
	}
	return errors.Join(err, s.dir.Close())
}

// HandOver gives the leadership to another voter, so that a server that stops
// in good order leaves no gap.
func (s *Store) HandOver() bool {
	if lead, _ := s.leadership.get(); !lead.Leader || !s.othersVote() {
		return false
	}
	ctx, cancel := context.WithTimeout(s.ctx, handOverWithin)
	defer cancel()
	if err := s.TransferLeadership(ctx); err != nil {
		s.log.Warn("could not hand the store's leadership over before stopping", "err", err)
		return false
	}
	return true
}
