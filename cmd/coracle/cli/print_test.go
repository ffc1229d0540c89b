// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"
	"testing"
)

// TestPrintTable: what other machines said of themselves neither commands the terminal nor adds rows.
func TestPrintTable(t *testing.T) {
	var out strings.Builder
	if err := printTable(&out, []string{"MEMBER", "STATE"}, [][]string{{"a\x1b]0;owned\x07\nroot", "alive"}}); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "MEMBER              STATE\na?]0;owned??root    alive\n"; strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
		t.Errorf("%q, want %q", got, want)
	}
}
