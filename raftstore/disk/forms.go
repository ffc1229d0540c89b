// SPDX-License-Identifier: Apache-2.0

package disk

import "fmt"

// since has the magic strings of files that an earlier version cannot read, with the level of the directory from which
// on each may be written. One that is not in it is of the first level. Who adds a form of a file adds it here.
var since = map[string]int{}

// checkForm returns an error if a file may not be made in a directory of a level.
func checkForm(magic string, level int) error {
	if from := since[magic]; from > level {
		return fmt.Errorf("a file that begins with %q may be made from level %d on, and the directory has level %d", magic, from, level)
	}
	return nil
}
