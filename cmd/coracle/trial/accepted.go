// SPDX-License-Identifier: Apache-2.0

package trial

import (
	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/internal/slots"
)

// Accepted returns which bundles this machine has taken. With keep, its record has it when Accepted returns.
func Accepted(v *slots.Versions, keep bool) (bundle.Accepted, error) {
	if keep {
		if err := bundle.KeepAccepted(v, bundle.Accepted{}); err != nil {
			return bundle.Accepted{}, err
		}
	}
	return bundle.AcceptedBy(v)
}
