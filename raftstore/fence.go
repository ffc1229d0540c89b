// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"
	"errors"

	"github.com/coracle-k8s/coracle/raftstore/fence"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
)

// WithTerm marks a context's writes as belonging to this server's leadership of a term. They are never forwarded to
// another server, and the state machine refuses them in every other term. So a leader that was paused, and continues to
// write when it wakes, changes nothing.
func WithTerm(ctx context.Context, term uint64) context.Context {
	return fence.WithTerm(ctx, term)
}

// WithFence does what WithTerm does. In addition, refused is called whenever a write of the context is refused because
// the term is over. A term that is over does not come back, so its writers have to stop. refused is called before the
// write returns, perhaps from many goroutines at once, and must not block.
func WithFence(ctx context.Context, term uint64, refused func()) context.Context {
	return fence.With(ctx, term, refused)
}

// CheckTerm returns an error if this server knows that the term of a context is over. It returns nil for a context
// without a term. It asks no other server, so another server may already lead when it returns nil.
func (s *Store) CheckTerm(ctx context.Context) error {
	term := fence.TermOf(ctx)
	if term == 0 {
		return nil
	}
	return endTermIfFenced(ctx, s.leadership.leadsIn(term))
}

// ConfirmTerm does what CheckTerm does, for effects outside the store, which the state machine cannot refuse. It asks a
// majority of the voters, and returns nil once it is certain that the term was not over when the call began. The term
// may end right afterwards.
func (s *Store) ConfirmTerm(ctx context.Context) error {
	term := fence.TermOf(ctx)
	if term == 0 {
		return nil
	}
	return endTermIfFenced(ctx, s.replication.confirmLeading(ctx, term))
}

// confirmLeading asks a majority of the voters whether this server still leads in a term.
func (r *reads) confirmLeading(ctx context.Context, term uint64) error {
	if err := r.leadership.leadsIn(term); err != nil {
		return err
	}
	_, err := r.serve(ctx, r.id, term)
	if over := r.leadership.leadsIn(term); over != nil {
		return over
	}
	return err // the majority that answered did so in the term in which this server leads
}

// leadsIn returns ErrFenced unless this server leads in a term.
func (l *leadership) leadsIn(term uint64) error {
	if lead, _ := l.get(); !lead.Leader || lead.Term != term {
		return mvcc.ErrFenced
	}
	return nil
}

// endTermIfFenced returns err. If err says that the term is over, it first calls the refused function of the context.
func endTermIfFenced(ctx context.Context, err error) error {
	if errors.Is(err, mvcc.ErrFenced) {
		fence.Refused(ctx)
	}
	return err
}
