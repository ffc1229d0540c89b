// SPDX-License-Identifier: Apache-2.0

package raftstore

import "context"

type termKey struct{}

// WithTerm marks a context's writes as those of this server's leadership of a
// term. They are never forwarded to another server, and the state machine
// refuses them in every other term: a leader that was paused, and writes on
// when it wakes, changes nothing.
func WithTerm(ctx context.Context, term uint64) context.Context {
	return context.WithValue(ctx, termKey{}, term)
}

// termOf returns the term of WithTerm, or 0.
func termOf(ctx context.Context) uint64 {
	term, _ := ctx.Value(termKey{}).(uint64)
	return term
}
