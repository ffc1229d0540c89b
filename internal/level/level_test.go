// SPDX-License-Identifier: Apache-2.0

package level

import (
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestLevelsThatAProgramWrites(t *testing.T) {
	defer func(was []string) { minors = was }(minors)
	minors = []string{"1.37"}
	testenv.EqualSlices(t, []bool{Known(0), Known(1), Known(2)}, []bool{false, true, false}, "a program of level 1 knows")
	minors = []string{"1.37", "1.38", "1.38"}
	testenv.EqualSlices(t, []bool{Known(1), Known(2), Known(3), Known(4)}, []bool{false, true, true, false}, "a program of level 3 knows")
	testenv.Equal(t, Minor(3), "1.38", "the minor of level 3")
}

func TestStoredLevels(t *testing.T) {
	for text, want := range map[string]int{"1": 1, "12": 12, "0": 0, "-1": 0, "": 0, "two": 0, "2 ": 0} {
		got, ok := Parse(text)
		testenv.Equal(t, ok, want > 0, "%q is a level:", text)
		if ok {
			testenv.Equal(t, got, want, "%q is", text)
		}
	}
}
