// SPDX-License-Identifier: Apache-2.0

// Package fence carries a raft term in a context, from whoever leads to the
// writes that are to happen in that term or not at all.
package fence

import "context"

type termKey struct{}

// WithTerm marks a context's writes as those of a server's leadership of a term.
func WithTerm(ctx context.Context, term uint64) context.Context {
	return context.WithValue(ctx, termKey{}, term)
}

// TermOf returns the term of WithTerm, or 0.
func TermOf(ctx context.Context) uint64 {
	term, _ := ctx.Value(termKey{}).(uint64)
	return term
}
