// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"os"
	"runtime/debug"
)

const (
	// leastFiles and mostFiles bound what is left of a limit for the program's own pages, which its control group is
	// charged for, and other files'. A start reads some 90 MB of them; with less, the kernel drops pages that are
	// needed next, and the process reads them again instead of running.
	leastFiles, mostFiles = 72 << 20, 256 << 20
	// leastHeap is about what an idle server has. A limit below it would make the collector run all the time and gain
	// nothing.
	leastHeap = 96 << 20
	// tight is what a start takes that has as much as it likes: 125 MB of heap and 155 MB of its program.
	tight = 288 << 20
)

// HeapLimit is what Go's part of the process (heap, stacks and the runtime's own) should stay within, in bytes, given
// how much the process may use: what a control group leaves beside pages of files, or half of a machine, whose other
// half is for its pods.
func HeapLimit(l Limit) int64 {
	if l.Group > 0 && l.Group < l.Machine {
		return max(l.Group-min(max(l.Group*3/8, leastFiles), mostFiles), leastHeap)
	}
	return max(l.Machine/2, leastHeap)
}

// Tight says whether a control group leaves so little that a start with ordinary settings would have to read its own
// program again and again.
func Tight(l Limit) bool { return l.Group > 0 && l.Group < l.Machine && l.Group < tight }

// Fit fits the process to how much memory it may use: the collector works harder near that instead of letting the heap
// grow over it, unless GOMEMLIMIT is in the environment, and where it is tight the program's pages are read singly.
func Fit(l Limit) error {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(HeapLimit(l))
	}
	if Tight(l) {
		return ReadPagesSingly()
	}
	return nil
}
