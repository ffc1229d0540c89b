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
	// otherSecrets is how often a Secret is read that Ingresses name and that is missing, or not of the type for
	// certificates, and a ConfigMap: these are not watched.
	otherSecrets = 10 * time.Second
	// maxReads bounds how many are read at a time, and readsPause is between two times: an Ingress may name ten
	// thousand that do not exist.
	maxReads, readsPause = 200, time.Second
)

// reads are objects that are not watched, as they were read last: Secrets, or ConfigMaps that Gateways name.
type reads[T any] struct {
	of map[types.NamespacedName]read[T]
}

type read[T any] struct {
	object *T // nil where it is missing
	at     time.Time
}

func (r *reads[T]) get(name types.NamespacedName) *T { return r.of[name].object }

// read is sync with a request to the API: an object that cannot be read is as it was read last, and for one that is
// missing its reader has a status.
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

// sync reads those that were not read for otherSecrets, maxReads at most: of each namespace the first in turn, those
// that were never read before others. It forgets the rest, and returns when to come again.
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
