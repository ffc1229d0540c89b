// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/slots"
)

// Accepted is what a machine remembers of the bundles that it has taken. It never goes back, whichever version runs.
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
	if _, err := atomicfile.ReadJSON(file, &a); err != nil {
		return a, fmt.Errorf("reading which bundles this machine has taken: %s: %w. If the file is damaged, remove it, and give the newest "+
			"bundle next", file, err)
	}
	return a, nil
}

// Write writes a to a file, durably.
func (a Accepted) Write(file string) error {
	if err := atomicfile.WriteJSON(file, a, 0o644); err != nil {
		return fmt.Errorf("recording which bundles this machine has taken: %w", err)
	}
	return nil
}

// Later returns the higher counter and the later keys of two states. One of them may be that of another machine of the
// cluster, which has taken other bundles.
func (a Accepted) Later(other Accepted) Accepted {
	a.Counter = max(a.Counter, other.Counter)
	if len(other.Replaced) > len(a.Replaced) {
		a.Keys, a.Replaced = other.Keys, other.Replaced
	}
	return a
}

// AcceptedBy returns which bundles a machine with these versions has taken: its record, and what lies beside the
// current version and the one before it, whose commits the record may not have yet. A version on trial does not count.
func AcceptedBy(v *slots.Versions) (Accepted, error) {
	s, err := v.State()
	if err != nil {
		return Accepted{}, err
	}
	files := []string{filepath.Join(v.Dir, slots.AcceptedFile)}
	for _, digest := range []string{s.Current, s.Previous} {
		if digest != "" {
			files = append(files, v.Slot(digest, slots.AcceptedFile))
		}
	}
	var a Accepted
	for _, file := range files {
		of, err := ReadAccepted(file)
		if err != nil {
			return a, err
		}
		a = a.Later(of)
	}
	return a, nil
}

// KeepAccepted writes what AcceptedBy returns, and more, to the record of a machine. The folder of a version may be
// removed only after that. A machine that has taken no bundle gets no record.
func KeepAccepted(v *slots.Versions, more Accepted) error {
	a, err := AcceptedBy(v)
	if err != nil {
		return err
	}
	if a = a.Later(more); a.Counter == 0 {
		return nil
	}
	return a.Write(filepath.Join(v.Dir, slots.AcceptedFile))
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
