// SPDX-License-Identifier: Apache-2.0

package netlinkutil

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestInterruptedDumpIsRepeated(t *testing.T) {
	broken := errors.New("broken")
	for what, c := range map[string]struct {
		interrupted int // so often, at first
		then        error
		want        error
		lists       int
	}{
		"at once":           {0, nil, nil, 1},
		"at the third time": {2, nil, nil, 3},
		"an error":          {0, broken, broken, 1},
		"an error later":    {1, broken, broken, 2},
		"never":             {1000, nil, netlink.ErrDumpInterrupted, maxAttempts},
	} {
		lists := 0
		got, err := ConsistentList(func() ([]int, error) {
			if lists++; lists <= c.interrupted {
				return []int{1}, fmt.Errorf("listing: %w", netlink.ErrDumpInterrupted)
			}
			return []int{1, 2}, c.then
		})
		testenv.False(t, !errors.Is(err, c.want) || lists != c.lists, "%s: %v after %d lists", what, err, lists)
		testenv.False(t, c.want == nil && !slices.Equal(got, []int{1, 2}), "%s: %v", what, got)
	}
}
