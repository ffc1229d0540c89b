// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// Accepted is what a machine remembers of the bundles that it has taken.
type Accepted struct {
	// Counter is the highest one.
	Counter int64 `json:"counter"`
	// Keys is the set that has replaced the release keys of programs that were built with one of Replaced; nil if none
	// has.
	Keys     *NamedKeys  `json:"keys,omitempty"`
	Replaced []NamedKeys `json:"replaced,omitempty"`
}

// ReadAccepted reads what Write has written. Without a file nothing was accepted.
func ReadAccepted(file string) (a Accepted, err error) {
	if _, err := atomicfile.ReadJSON(file, &a); err != nil && !errors.Is(err, os.ErrNotExist) {
		return a, fmt.Errorf("reading which bundles this machine has taken: %w", err)
	}
	return a, nil
}

// Write writes a to a file, durably.
func (a Accepted) Write(file string) error {
	if err := atomicfile.WriteJSON(file, a, 0o600); err != nil {
		return fmt.Errorf("recording which bundles this machine has taken: %w", err)
	}
	return nil
}

// Later returns the later of two states of a machine.
func (a Accepted) Later(other Accepted) Accepted {
	if other.Counter > a.Counter || other.Counter == a.Counter && len(other.Replaced) > len(a.Replaced) {
		return other
	}
	return a
}

// With returns a after a bundle that was verified against t with this verdict.
func (a Accepted) With(x *Index, t Trusted, v Verdict) Accepted {
	a.Counter = max(a.Counter, x.Contents.Counter)
	if v.Keys != nil {
		a.Keys, a.Replaced = v.Keys, append(slices.Clone(a.Replaced), *t.Release.Named())
	}
	return a
}

// After returns the keys that are trusted after the bundles that a machine has taken. A program that was built with
// keys that none of them has replaced knows of a later replacement, so its own keys count.
func (t Trusted) After(a Accepted) (Trusted, error) {
	if a.Keys == nil || len(t.Release.Public) == 0 {
		return t, nil
	}
	for _, old := range a.Replaced {
		k, err := old.parse()
		if err != nil {
			return t, fmt.Errorf("the release keys that this machine had cannot be read: %w", err)
		}
		if !k.equal(t.Release) {
			continue
		}
		if t.Release, err = a.Keys.parse(); err != nil {
			return t, fmt.Errorf("the release keys that this machine has taken cannot be read: %w", err)
		}
		return t, nil
	}
	return t, nil
}
