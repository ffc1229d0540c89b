// SPDX-License-Identifier: Apache-2.0

package load

import "testing"

// TestObjectSizeIsComparable keeps the objects comparable with values of 1 KB.
func TestObjectSizeIsComparable(t *testing.T) {
	if n := len(newObject(1)); n < 900 || n > 1200 {
		t.Errorf("an object has %d bytes", n)
	}
}
