// SPDX-License-Identifier: Apache-2.0

package mvcc

import "fmt"

// Since has the forms that an earlier version cannot read, with the level of the cluster from which on each may be
// written. A form that is not in it is of the first level. Who adds a form adds it here. Otherwise only tests change
// it.
var Since struct {
	// Formats are those of log entries. A snapshot is packed where an entry may be.
	Formats, Kinds, Flags, Records map[byte]int
}

// checkCommand returns an error if a command may not be written at a level.
func checkCommand(kind, flags byte, level int) error {
	since := Since.Kinds[kind]
	for flag, from := range Since.Flags {
		if flags&flag != 0 {
			since = max(since, from)
		}
	}
	if since > level {
		return fmt.Errorf("mvcc: a command of kind %d with flags %#x may be written from level %d on, and the cluster has level %d",
			kind, flags, since, level)
	}
	return nil
}

func mayPack(level int) bool { return Since.Formats[packedFormat] <= level }
