// SPDX-License-Identifier: Apache-2.0

// Package deleting marks the writes of a context as steps of a deletion, from the API server to the store. They may use
// the quota's reserve, so that objects can be deleted when the quota is used up.
package deleting

import (
	"context"
	"sync/atomic"
)

type key struct{}

// A Mark says whether the writes of a context are steps of a deletion. At first they are not.
type Mark struct{ marked atomic.Bool }

// With returns a context with a mark of its own.
func With(ctx context.Context) (context.Context, *Mark) {
	m := &Mark{}
	return context.WithValue(ctx, key{}, m), m
}

// Set says whether the context's next writes are steps of a deletion.
func (m *Mark) Set(on bool) { m.marked.Store(on) }

// Of says whether a context's writes are steps of a deletion.
func Of(ctx context.Context) bool {
	m, _ := ctx.Value(key{}).(*Mark)
	return m != nil && m.marked.Load()
}
