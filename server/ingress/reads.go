// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"cmp"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// otherSecrets is how often an object is read that is not watched. These are ConfigMaps, and Secrets that Ingresses
	// name and that are missing or not of the type for certificates.
	otherSecrets = 10 * time.Second
	// maxReads is how many objects are read at a time, and readsPause is the pause after that: an Ingress may name ten
	// thousand that do not exist.
	maxReads, readsPause = 200, time.Second
)

// reads is a cache of objects that are not watched: Secrets, or ConfigMaps that Gateways name.
type reads[T any] struct {
	of map[types.NamespacedName]read[T]
}

type read[T any] struct {
	object *T // nil if it is missing
	at     time.Time
}

func (r *reads[T]) get(name types.NamespacedName) *T { return r.of[name].object }

// read calls sync with requests to the API. An object that cannot be read stays as it was. A missing object is nil, and
// the compiler reports it in a status.
func (r *reads[T]) read(now time.Time, names []types.NamespacedName, get func(namespace, name string) (*T, error)) (again time.Duration) {
	return r.sync(now, names, func(name types.NamespacedName) *T {
		switch o, err := get(name.Namespace, name.Name); {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return r.get(name)
		default:
			return o
		}
	})
}

// sync reads the objects that were not read for otherSecrets, at most maxReads. It takes them from the namespaces in
// turn. Objects that were never read come first. It removes other objects from the cache, and returns when to call it
// again.
func (r *reads[T]) sync(now time.Time, names []types.NamespacedName, get func(types.NamespacedName) *T) (again time.Duration) {
	if len(names) == 0 {
		r.of = nil
		return 0
	}
	of, due := make(map[types.NamespacedName]read[T], len(names)), make([]types.NamespacedName, 0, len(names))
	for _, name := range names {
		have, ok := r.of[name]
		if ok {
			of[name] = have
		}
		if now.Sub(have.at) >= otherSecrets {
			due = append(due, name)
		}
	}
	r.of = of
	due = roundRobin(due, func(name types.NamespacedName) time.Time { return of[name].at })
	for _, name := range due[:min(maxReads, len(due))] {
		of[name] = read[T]{get(name), now}
	}
	if len(due) > maxReads {
		return readsPause
	}
	return otherSecrets
}

// roundRobin orders names by age, and takes one of each namespace before the second of any.
func roundRobin(names []types.NamespacedName, age func(types.NamespacedName) time.Time) []types.NamespacedName {
	slices.SortFunc(names, func(a, b types.NamespacedName) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), age(a).Compare(age(b)), strings.Compare(a.Name, b.Name))
	})
	turn := make(map[types.NamespacedName]int, len(names))
	for i, name := range names {
		if i > 0 && names[i-1].Namespace == name.Namespace {
			turn[name] = turn[names[i-1]] + 1
		}
	}
	slices.SortStableFunc(names, func(a, b types.NamespacedName) int { return turn[a] - turn[b] })
	return names
}
