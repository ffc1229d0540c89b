//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/ha"
)

// TestCompatOneServer: this version takes over the directory of the one before it, and the other way round, twice.
// Neither loses a write, restarts a pod or changes a format number.
func TestCompatOneServer(t *testing.T) {
	thereAndBack(t, older(t), this(), 2)
}

// TestCompatTwoLevels: a version that knows a level more takes over a directory, and the one without that level again,
// while the level of the cluster is not raised.
func TestCompatTwoLevels(t *testing.T) {
	thereAndBack(t, this(), twoLevels(t), 1)
}

// thereAndBack runs a server with a node whose program is exchanged for another version's and back, so many times.
func thereAndBack(t *testing.T, n, next version, times int) {
	t.Helper()
	c := ha.NewOfNodesOfProgram(t, n.program, 1)
	l := startLoad(t, c)
	l.holds(n.name)
	for i, v := range slices.Repeat([]version{next, n}, times) {
		began := time.Now()
		l.exchange(c.Servers[0], v)
		what := fmt.Sprintf("step %d, %s", i+1, v.name)
		l.holds(what)
		t.Logf("%s: the only server was without writes for %.1f s", what, l.gap(began, nil).Seconds())
	}
}
