// SPDX-License-Identifier: Apache-2.0

package raftstore

import (
	"context"

	"github.com/coracle-k8s/coracle/raftstore/fence"
)

// WithTerm marks a context's writes as those of this server's leadership of a
// term. They are never forwarded to another server, and the state machine
// refuses them in every other term: a leader that was paused, and writes on
// when it wakes, changes nothing.
func WithTerm(ctx context.Context, term uint64) context.Context {
	return fence.WithTerm(ctx, term)
}
