// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/utils/clock"
)

const (
	reserveFile = "RESERVE"
	// defaultReserve is the size of the reserve file, in bytes. Writes that are under way when the disk fills up need
	// less: two log entries and raft's own variables, with bbolt's page copies. New writes are refused when less than
	// half of the reserve's size is free beside it.
	defaultReserve = 16 << 20
	// checkEvery is how often the free space is checked while there are writes.
	checkEvery = 100 * time.Millisecond
	// retryEvery is how long to wait before a failed write is repeated.
	retryEvery = 200 * time.Millisecond
)

// ErrNoSpace says that new writes are refused because the disk is full.
var ErrNoSpace = errors.New("the store's disk is full")

// ErrFailing says that new writes are refused because the disk returns errors.
var ErrFailing = errors.New("the store's disk is failing")

// space makes writes wait while the disk is full or failing. Raft cannot cope with a failed write: it panics if a term
// cannot be saved, and gives up its leadership if an entry cannot. So a failed write is repeated until it succeeds. On
// a full disk, the space of a reserve file is freed for it first. Until there is room for a new reserve, new writes are
// refused before they reach raft.
type space struct {
	dir    string
	log    *slog.Logger
	clock  clock.Clock
	size   int64 // of the reserve, in bytes
	faults Faults

	mu         sync.Mutex
	hasReserve bool
	refusal    error // why new writes are refused, or nil
	checkedAt  time.Time
}

func newSpace(o Options) *space {
	s := &space{dir: o.Path, size: o.Reserve, log: o.Logger, clock: o.Clock, faults: o.Faults}
	s.reserve()
	if !s.hasReserve {
		s.refuse(ErrNoSpace)
	}
	return s
}

func (s *space) freeBytes() (int64, error) {
	if s.faults.Full() {
		return 0, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", s.dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// admit returns nil if a new write may be tried, else the reason why not.
func (s *space) admit() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock.Now()
	if now.Sub(s.checkedAt) < checkEvery && !now.Before(s.checkedAt) {
		return s.refusal
	}
	s.checkedAt = now
	if errors.Is(s.refusal, ErrFailing) {
		return s.refusal // only a write that succeeds ends this
	}
	free, err := s.freeBytes()
	if err != nil {
		return s.refusal // the write itself will fail if the disk does
	}
	need := s.size / 2
	if !s.hasReserve {
		need += s.size
	}
	if free < need {
		s.refuse(ErrNoSpace)
		return s.refusal
	}
	if !s.hasReserve {
		s.reserve()
	}
	if s.hasReserve && s.refusal != nil {
		s.log.Info("the store's disk has free space again: accepting writes", "free", free)
		s.refusal = nil
	}
	return s.refusal
}

func (s *space) refuse(cause error) {
	if s.refusal == nil {
		s.log.Error("refusing writes to the store; reads go on", "cause", cause, "dir", s.dir)
	}
	s.refusal = cause
}

// reserve allocates the reserve file, if there is space for it.
func (s *space) reserve() {
	path := filepath.Join(s.dir, reserveFile)
	if info, err := os.Stat(path); err == nil && info.Size() == s.size {
		s.hasReserve = true
		return
	}
	if s.faults.Full() {
		return
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return
	}
	if err := errors.Join(allocate(f, s.size), f.Close()); err != nil {
		os.Remove(path)
		return
	}
	s.hasReserve = true
}

// noteFailure notes that a write failed. If the disk is full, it frees the reserve.
func (s *space) noteFailure(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	full := errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
	if !full {
		s.log.Error("a write to the store's disk failed; retrying", "dir", s.dir, "err", err)
		s.refuse(ErrFailing)
		return
	}
	s.refuse(ErrNoSpace)
	if s.hasReserve {
		s.hasReserve = false
		os.Remove(filepath.Join(s.dir, reserveFile))
	}
}

func (s *space) noteSuccess() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(s.refusal, ErrFailing) {
		s.log.Info("the store's disk accepts writes again")
		s.refusal = nil
	}
}

// persist runs a write until it succeeds, until ctx ends, or until it finds damage, which does not go away. write must
// be repeatable as a whole.
func (s *space) persist(ctx context.Context, write func() error) error {
	err := write()
	if err == nil {
		return nil
	}
	for damage := (*DamageError)(nil); !errors.As(err, &damage); {
		s.noteFailure(err)
		if err = write(); err == nil {
			s.noteSuccess()
			return nil
		}
		timer := s.clock.NewTimer(retryEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-timer.C():
		}
	}
	return err
}
