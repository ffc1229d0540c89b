// SPDX-License-Identifier: Apache-2.0

// Package fence keeps a raft term in a context, from the leader to the writes that must be done in that term or not at
// all.
package fence

import "context"

type key struct{}

// fence is the term of leadership that a context's writes belong to.
type fence struct {
	term    uint64
	refused func() // or nil
}

// WithTerm marks a context's writes as belonging to a server's leadership of a term.
func WithTerm(ctx context.Context, term uint64) context.Context { return With(ctx, term, nil) }

// With does what WithTerm does. In addition, Refused calls refused.
func With(ctx context.Context, term uint64, refused func()) context.Context {
	return context.WithValue(ctx, key{}, fence{term, refused})
}

// TermOf returns the term that WithTerm or With set in the context, or 0.
func TermOf(ctx context.Context) uint64 {
	f, _ := ctx.Value(key{}).(fence)
	return f.term
}

// Refused calls the refused function of the context's term, if there is one: the term is over.
func Refused(ctx context.Context) {
	if f, _ := ctx.Value(key{}).(fence); f.refused != nil {
		f.refused()
	}
}
