// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
)

// maxReads is how many objects are read at a time, and readsPause is the pause after that, and after an error: an
// Ingress may name thousands.
const maxReads, readsPause = 200, time.Second

// reads is a cache of objects that routes name, of which no more than their versions is watched: ConfigMaps, and
// Secrets that are not of the type for certificates. A missing object costs no request.
type reads[T any] struct {
	versions *versions
	get      func(ctx context.Context, name types.NamespacedName) (*T, error)
	// byName has an entry for each name. It changes only with versions.mu held.
	byName map[types.NamespacedName]*cachedObject[T] // nil if the object is missing
}

type cachedObject[T any] struct {
	object  *T
	version string // in versions when the object was read; "" before that
}

func newReads[T any](v *versions, get func(context.Context, types.NamespacedName) (*T, error)) *reads[T] {
	r := &reads[T]{versions: v, get: get}
	v.names = append(v.names, func(name types.NamespacedName) bool {
		_, ok := r.byName[name]
		return ok
	})
	return r
}

// object returns an object, or nil if it is missing.
func (r *reads[T]) object(name types.NamespacedName) *T {
	if have := r.byName[name]; have != nil {
		return have.object
	}
	return nil
}

// sync reads the objects with these names that exist and that have changed since they were read, at most maxReads. It
// takes them from the namespaces in turn. It removes other objects from the cache. changed says whether an object is
// another one than before. again is the time after which to call it again without a change, 0 for never.
//
// An object that cannot be read stays as it was. The compiler reports a missing one in an event or in a status.
func (r *reads[T]) sync(ctx context.Context, names []types.NamespacedName) (changed bool, again time.Duration) {
	if len(names) > 0 && !r.versions.ready(ctx) {
		return false, 0
	}
	changed, due := r.compare(names)
	for _, one := range due[:min(maxReads, len(due))] {
		o, err := r.get(ctx, one.name)
		if err != nil && !apierrors.IsNotFound(err) {
			again = readsPause
			continue
		}
		if err != nil {
			o = nil // the watch reports it later
		}
		have := r.byName[one.name]
		changed = changed || o != have.object
		have.object, have.version = o, one.version
	}
	if len(due) > maxReads {
		again = readsPause
	}
	return changed, again
}

// dueRead is a name to read, with the version that the object has at least.
type dueRead struct {
	name    types.NamespacedName
	version string
}

// compare returns the objects to read: one of each namespace, then the second of each, and so on. changed says whether
// one has been deleted.
func (r *reads[T]) compare(names []types.NamespacedName) (changed bool, all []dueRead) {
	v := r.versions
	v.mu.Lock()
	defer v.mu.Unlock()
	of := make(map[types.NamespacedName]*cachedObject[T], len(names))
	for _, name := range names {
		have := r.byName[name]
		switch version, ok := v.byName[name]; {
		case !ok:
			changed = changed || have != nil && have.object != nil
			have = nil
		case have == nil || have.version != version:
			if have == nil {
				have = &cachedObject[T]{}
			}
			all = append(all, dueRead{name, version})
		}
		of[name] = have
	}
	r.byName = of
	return changed, roundRobin(all)
}

// roundRobin takes one of each namespace before the second of any.
func roundRobin(all []dueRead) []dueRead {
	slices.SortFunc(all, func(a, b dueRead) int { return strings.Compare(a.name.String(), b.name.String()) })
	turn := make(map[types.NamespacedName]int, len(all))
	for i, one := range all {
		if i > 0 && all[i-1].name.Namespace == one.name.Namespace {
			turn[one.name] = turn[all[i-1].name] + 1
		}
	}
	slices.SortStableFunc(all, func(a, b dueRead) int { return turn[a.name] - turn[b.name] })
	return all
}
