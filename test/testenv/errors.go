// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Test is what the checks of this file need of a test: *rapid.T has no more.
type Test interface {
	Helper()
	Error(args ...any)
	Errorf(format string, args ...any)
	Fatal(args ...any)
}

// NoError ends the test if there was an error. doing, a format and its arguments, says of what.
func NoError(t Test, err error, doing ...any) {
	t.Helper()
	if err != nil {
		t.Fatal(of(err, doing))
	}
}

// Check fails the test if there was an error, and lets it go on.
func Check(t Test, err error, doing ...any) {
	t.Helper()
	if err != nil {
		t.Error(of(err, doing))
	}
}

func of(err error, doing []any) string {
	if len(doing) == 0 {
		return err.Error()
	}
	return fmt.Sprintf(doing[0].(string), doing[1:]...) + ": " + err.Error()
}

// Fails fails the test with a message if there was no error.
func Fails(t Test, err error, message string, args ...any) {
	t.Helper()
	if err == nil {
		t.Errorf(message, args...)
	}
}

// Must is for a call of which only the first result matters: Must(f())(t) ends the test if f returned an error.
func Must[T any](v T, err error) func(Test) T {
	return func(t Test) T {
		t.Helper()
		NoError(t, err)
		return v
	}
}

// Err is a call's error without its result.
func Err[T any](_ T, err error) error { return err }

// WantError fails the test unless there is an error in whose text all these words are.
func WantError(t Test, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("the error is %v, want one with %q", err, w)
		}
	}
}

// ErrorIs fails the test unless errors.Is(err, want). doing, a format and its arguments, says of what the error is.
func ErrorIs(t Test, err, want error, doing ...any) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Error(of(fmt.Errorf("the error is %w, want %w", err, want), doing))
	}
}

// True fails the test with a message, which says what is wrong, unless something is so.
func True(t Test, so bool, wrong string, args ...any) {
	t.Helper()
	if !so {
		t.Errorf(wrong, args...)
	}
}

// False fails the test with a message, which says what is wrong, if something is so.
func False(t Test, so bool, wrong string, args ...any) {
	t.Helper()
	True(t, !so, wrong, args...)
}

// Require ends the test with a message, which says what is wrong, unless something is so.
func Require(t Test, so bool, wrong string, args ...any) {
	t.Helper()
	if !so {
		t.Fatal(fmt.Sprintf(wrong, args...))
	}
}

// Equal fails the test unless got is want. what begins the message, which goes on with the two: "the key %s is".
func Equal[T comparable](t Test, got, want T, what string, args ...any) {
	t.Helper()
	if got == want {
		return
	}
	form := "%s %+v, want %+v"
	if _, text := any(got).(string); text {
		form = "%s %q, want %q"
	}
	t.Error(strings.TrimSpace(fmt.Sprintf(form, fmt.Sprintf(what, args...), got, want)))
}

// EqualSlices is Equal for slices.
func EqualSlices[E comparable](t Test, got, want []E, what string, args ...any) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Error(strings.TrimSpace(fmt.Sprintf("%s %+v, want %+v", fmt.Sprintf(what, args...), got, want)))
	}
}

// Contains fails the test unless a word is in a text. what begins the message, as that of Equal.
func Contains(t Test, text, word, what string, args ...any) {
	t.Helper()
	if !strings.Contains(text, word) {
		t.Error(strings.TrimSpace(fmt.Sprintf("%s %q, want %q in it", fmt.Sprintf(what, args...), text, word)))
	}
}
