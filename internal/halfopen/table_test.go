// SPDX-License-Identifier: Apache-2.0

package halfopen

import (
	"slices"
	"testing"
)

func TestTable(t *testing.T) {
	table := Table{Max: 3}
	var gone []int
	var done []func()
	add := func(n int) bool {
		leave, ok := table.Add(func() { gone = append(gone, n) })
		done = append(done, leave)
		return ok
	}
	for n := range 5 {
		if !add(n) {
			t.Fatal("refused")
		}
	}
	if want := []int{0, 1}; !slices.Equal(gone, want) {
		t.Errorf("hung up on %v, want %v", gone, want)
	}
	done[0]() // gone already: it makes no room
	done[3]()
	add(5)
	if want := []int{0, 1}; !slices.Equal(gone, want) {
		t.Errorf("with room for one more, hung up on %v, want %v", gone, want)
	}
	add(6)
	table.Close()
	table.Close()
	if want := []int{0, 1, 2, 4, 5, 6}; !slices.Equal(gone, want) {
		t.Errorf("at the end hung up on %v, want %v", gone, want)
	}
	if add(7) {
		t.Error("taken in after the end")
	}
	done[4]() // is nothing any more
}
