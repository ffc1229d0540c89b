// SPDX-License-Identifier: Apache-2.0

package version

import (
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestNeighboringProtocolsAreUnderstood: a version and the one before it live in one cluster, whichever end asks.
func TestNeighboringProtocolsAreUnderstood(t *testing.T) {
	defer func(was string) { protocol = was }(protocol)
	for own, want := range map[string]map[int]bool{
		"1": {1: true, 2: true, 3: false},
		"2": {-1: false, 1: true, 2: true, 3: true, 4: false},
		"4": {1: false, 2: false, 3: true, 5: true, 1 << 40: false},
	} {
		protocol = own
		for other, ok := range want {
			testenv.False(t, Understands(other) != ok, "%s and %d: %t", own, other, !ok)
		}
	}
}
