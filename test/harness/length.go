// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"os"
	"testing"
)

// length is how much of the long scenarios runs: nothing (make test), their short length (make e2e-ha SHORT=1), or all
// of them.
var length = os.Getenv("CORACLE_HA_WHOLE")

// Whole reports whether scenarios run at their whole length, which takes hours.
func Whole() bool { return length != "" && length != "short" }

// SkipUnlessWhole skips a scenario where those do not run at their whole length, and says why.
func SkipUnlessWhole(t *testing.T, why string) {
	t.Helper()
	if !Whole() {
		t.Skip(why + ": make e2e-ha has it")
	}
}

// ByHand skips a scenario unless make e2e-ha runs it. Such a scenario tries each fault on each machine, or its result
// depends on real time: a busy machine can make it fail where nothing is wrong, and a user who runs it by hand reads
// what it says.
func ByHand(t *testing.T) {
	t.Helper()
	if length == "" {
		t.Skip("its result depends on real time, or it takes long: make e2e-ha runs it, with SHORT=1 at its short length")
	}
}
