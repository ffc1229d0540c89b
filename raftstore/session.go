// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"sync"

	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// session numbers this server's writes, so that the state machine recognizes a repeated one. A write whose answer was
// lost with the leader or the connection to it can then be sent again without happening twice (Ongaro, "Consensus:
// bridging theory and practice", 6.3).
type session struct {
	mu         sync.Mutex
	id         uint64
	lastNumber uint64
	// floor is the lowest number whose answer may still be needed. The state machine forgets the answers below it.
	floor       uint64
	outstanding map[uint64]struct{}
}

// addNumber gives a command its session and number. It reports false if no session is open. done must be called when
// the command will not be sent again.
func (s *session) addNumber(c *mvcc.Command) (done func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.id == 0 {
		return nil, false
	}
	s.lastNumber++
	c.Session, c.Seq, c.Floor = s.id, s.lastNumber, s.floor
	s.outstanding[c.Seq] = struct{}{}
	id, seq := s.id, c.Seq
	return func() { s.release(id, seq) }, true
}

func (s *session) release(id, seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.id != id {
		return
	}
	delete(s.outstanding, seq)
	for s.floor <= s.lastNumber {
		if _, ok := s.outstanding[s.floor]; ok {
			break
		}
		s.floor++
	}
}

// open begins a session that the state machine has opened.
func (s *session) open(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id, s.lastNumber, s.floor, s.outstanding = id, 0, 1, make(map[uint64]struct{})
}

func (s *session) isOpen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id != 0
}

// closeLost closes a session that the state machine does not know.
func (s *session) closeLost(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.id == id {
		s.id = 0
	}
}
