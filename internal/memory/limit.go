// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"os"
	"runtime/debug"
)

const (
	// minFiles and maxFiles are the minimum and the maximum of the memory, in bytes, that a limit reserves for pages
	// of files. These are the program's own pages, for which its control group is charged, and other files'. A start
	// reads some 90 MB of them. With less, the kernel drops pages that are needed next, and the process reads them
	// again instead of running.
	minFiles, maxFiles = 72 << 20, 256 << 20
	// minHeap is about the heap of an idle server, in bytes. A lower limit would make the collector run all the time
	// without a gain.
	minHeap = 96 << 20
	// tightLimit is the memory that a start takes without a limit, in bytes: 125 MB of heap and 155 MB of its program.
	tightLimit = 288 << 20
)

// HeapLimit returns the limit for the memory of Go's runtime (heap, stacks and its own data), in bytes. Under a control
// group's limit, that is the limit less the memory reserved for pages of files. Otherwise it is half of the machine's
// memory: the other half is for pods.
func HeapLimit(l Limit) int64 {
	if l.Group > 0 && l.Group < l.Machine {
		return max(l.Group-min(max(l.Group*3/8, minFiles), maxFiles), minHeap)
	}
	return max(l.Machine/2, minHeap)
}

// Tight says whether a control group leaves so little memory that a start with the default settings would have to read
// its own program again and again.
func Tight(l Limit) bool { return l.Group > 0 && l.Group < l.Machine && l.Group < tightLimit }

// Fit adapts the process to the memory that it may use. Near the limit, the collector runs more often instead of
// letting the heap grow over the limit, unless GOMEMLIMIT is in the environment. If memory is tight, the program's
// pages are read singly.
func Fit(l Limit) error {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(HeapLimit(l))
	}
	if Tight(l) {
		return ReadPagesSingly()
	}
	return nil
}
