// SPDX-License-Identifier: Apache-2.0

package trial

import (
	"path/filepath"

	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/internal/slots"
)

// Accepted returns which bundles this machine has taken: the later of its record and of what lies beside the current
// version, whose commit the record may not have yet. With keep, the record has it when Accepted returns; a version's
// folder may be removed only then.
func Accepted(v *slots.Versions, keep bool) (bundle.Accepted, error) {
	record := filepath.Join(v.Dir, slots.AcceptedFile)
	a, err := bundle.ReadAccepted(record)
	if err != nil {
		return a, err
	}
	s, err := v.State()
	if err != nil || s.Current == "" {
		return a, err
	}
	current, err := bundle.ReadAccepted(v.Slot(s.Current, slots.AcceptedFile))
	if err != nil {
		return a, err
	}
	if a = a.Later(current); keep && (a.Counter > 0 || a.Keys != nil) {
		return a, a.Write(record)
	}
	return a, nil
}
