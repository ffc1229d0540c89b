// SPDX-License-Identifier: Apache-2.0

package connlimit

import (
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestUnauthenticatedBoundFollowsMemory: the bound follows the memory, within what every cluster needs and what the
// descriptors allow.
func TestUnauthenticatedBoundFollowsMemory(t *testing.T) {
	for memory, want := range map[int64]int{0: minUnauthenticated, 512 << 20: 282, 2 << 30: 1129, 64 << 30: maxUnauthenticated} {
		testenv.Equal(t, byMemory(memory), want, "%d MB:", memory>>20)
	}
}
