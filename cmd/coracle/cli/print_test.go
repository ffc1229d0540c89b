// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestTablesEscapeControlCharacters: what other machines said of themselves neither commands the terminal nor adds
// rows.
func TestTablesEscapeControlCharacters(t *testing.T) {
	var out strings.Builder
	testenv.NoError(t, printTable(&out, []string{"MEMBER", "STATE"}, [][]string{{"a\x1b]0;owned\x07\nroot", "alive"}}))
	if got, want := out.String(), "MEMBER              STATE\na?]0;owned??root    alive\n"; strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestErrorsDoNotCommandTheTerminal: an error may have what another machine has answered, an S3 server for example.
func TestErrorsDoNotCommandTheTerminal(t *testing.T) {
	for _, kind := range []func(error) error{
		func(err error) error { return runError{err} },
		func(err error) error { return err },
	} {
		var out strings.Builder
		a := &App{Stderr: &out}
		a.report(kind(errors.New("S3 says: \x1b]0;owned\x07\u009b2J\u202e\r\n\tsecond line")))
		if got, want := out.String(), "coracle: S3 says: ?]0;owned??2J??\n\tsecond line\n"; !strings.HasPrefix(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
