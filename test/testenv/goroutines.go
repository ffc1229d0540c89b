// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

// NoGoroutineLeft fails the test unless all goroutines end but those of options: goleak.IgnoreCurrent() at the start of
// the test leaves out what others have left behind. goleak.VerifyNone gives them less than half a second, which a
// machine that is busy with other tests does not keep.
func NoGoroutineLeft(t testing.TB, options ...goleak.Option) {
	t.Helper()
	Eventually(t, 2*time.Minute, "no goroutine is left", func() error { return goleak.Find(options...) })
}
