// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"

	"github.com/coracle-k8s/coracle/raftstore/fence"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// WithTerm marks a context's writes as those of this server's leadership of a
// term. They are never forwarded to another server, and the state machine
// refuses them in every other term: a leader that was paused, and writes on
// when it wakes, changes nothing.
func WithTerm(ctx context.Context, term uint64) context.Context {
	return fence.WithTerm(ctx, term)
}

// WithFence is WithTerm, and calls refused whenever a write of the context is
// refused because the term is over. A term that is over does not come back, so
// its writers have to stop. Refused is called before the write returns,
// perhaps from many goroutines at once, and must not block.
func WithFence(ctx context.Context, term uint64, refused func()) context.Context {
	return fence.With(ctx, term, refused)
}

// CheckTerm returns an error if, for all that this server knows, the term of a
// context is over, and nil for a context without one. It asks no other server: another
// server may lead already.
func (s *Store) CheckTerm(ctx context.Context) error {
	term := fence.TermOf(ctx)
	if term == 0 {
		return nil
	}
	return tellRefused(ctx, s.leadership.leadsIn(term))
}

// ConfirmTerm is CheckTerm for what the state machine does not see and so cannot
// refuse. It returns nil once it is certain that the term was not over when the
// call began, for which a majority of the voters is asked. The term may end
// right afterwards.
func (s *Store) ConfirmTerm(ctx context.Context) error {
	term := fence.TermOf(ctx)
	if term == 0 {
		return nil
	}
	return tellRefused(ctx, s.replication.confirmLeading(ctx, term))
}

// confirmLeading asks a majority of the voters.
func (r *reads) confirmLeading(ctx context.Context, term uint64) error {
	if err := r.leadership.leadsIn(term); err != nil {
		return err
	}
	_, err := r.serve(ctx, r.id, term)
	if over := r.leadership.leadsIn(term); over != nil {
		return over
	}
	return err // the majority that answered was in the term that this server leads in
}

// leadsIn returns ErrFenced unless this server leads in a term.
func (l *leadership) leadsIn(term uint64) error {
	if lead, _ := l.get(); !lead.Leader || lead.Term != term {
		return mvcc.ErrFenced
	}
	return nil
}

// tellRefused passes an error on, and tells the owner of a context's term of one
// that means that the term is over.
func tellRefused(ctx context.Context, err error) error {
	if errors.Is(err, mvcc.ErrFenced) {
		fence.Refused(ctx)
	}
	return err
}
