// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"strings"
	"testing"
)

// NoError ends the test if there was an error.
func NoError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Check fails the test if there was an error, and lets it go on.
func Check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// Must is for a call of which only the first result matters: Must(f())(t) ends the test if f returned an error.
func Must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		NoError(t, err)
		return v
	}
}

// Err is a call's error without its result.
func Err[T any](_ T, err error) error { return err }

// WantError fails the test unless there is an error in whose text all these words are.
func WantError(t testing.TB, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("the error is %v, want one with %q", err, w)
		}
	}
}
