// SPDX-License-Identifier: Apache-2.0

// Package level has the levels of a cluster: one number that says in which forms its machines write and send, and which
// minor version of Kubernetes they are.
//
// A cluster's level is stored in its replicated store (Key). A program whose newest level is n reads the forms of n-1
// and n, and writes those of the cluster's level, so that the version before can take over from it. Only "coracle
// upgrade raise" raises the level, and nothing lowers it. docs/adr/0181 has the rules and the forms of each level.
package level

import "strconv"

// Key is where a cluster's level is stored, as a decimal number. A store without it has level First.
const Key = "/coracle/level"

// First is the level of clusters that were made before there were levels.
const First = 1

// Newest returns the newest level that this program can write. A new cluster has it.
func Newest() int { return len(minors) }

// Oldest returns the oldest level that this program can write: the one before the newest, if there is one.
func Oldest() int { return OldestOf(Newest()) }

// OldestOf returns the oldest level that a program with this newest one can write.
func OldestOf(newest int) int { return max(First, newest-1) }

// Known says whether this program can run in a cluster of a level.
func Known(level int) bool { return Oldest() <= level && level <= Newest() }

// Minor returns the minor version of Kubernetes, such as 1.37, that machines have in a cluster of a level. The level
// must be from First to Newest.
func Minor(level int) string { return minors[level-1] }

// Field returns a level as a field of messages and files has it: 0, which is left out, for the first one. Earlier
// versions write and read none.
func Field(level int) int {
	if level == First {
		return 0
	}
	return level
}

// Parse returns the level that was stored as text. ok is false if that is none.
func Parse(text string) (level int, ok bool) {
	n, err := strconv.Atoi(text)
	return n, err == nil && n >= First
}
