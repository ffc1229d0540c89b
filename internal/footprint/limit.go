// SPDX-License-Identifier: Apache-2.0

package footprint

import (
	"os"
	"runtime/debug"

	"github.com/coracle-k8s/coracle/internal/memlimit"
)

const (
	// leastFiles and mostFiles bound what is left of a limit for the program's own pages, which its control group is
	// charged for, and other files'. A start reads some 90 MB of them; with less, the kernel drops pages that are needed
	// next, and the process reads them again instead of running.
	leastFiles, mostFiles = 72 << 20, 256 << 20
	// leastHeap is about what an idle server has. A limit below it would make the collector run all the time and gain
	// nothing.
	leastHeap = 96 << 20
)

// HeapLimit is what Go's part of the process (heap, stacks and the runtime's own) should stay within, in bytes, given how
// much the process may use: what a control group leaves beside pages of files, or half of a machine, whose other half is
// for its pods.
func HeapLimit(l memlimit.Limit) int64 {
	if l.Group > 0 && l.Group < l.Machine {
		return max(l.Group-min(max(l.Group*3/8, leastFiles), mostFiles), leastHeap)
	}
	return max(l.Machine/2, leastHeap)
}

// SetHeapLimit makes the collector work harder near the limit of this process instead of growing over it. GOMEMLIMIT in
// the environment overrides it.
func SetHeapLimit() error {
	if os.Getenv("GOMEMLIMIT") != "" {
		return nil
	}
	l, err := memlimit.Self()
	if err != nil {
		return err
	}
	debug.SetMemoryLimit(HeapLimit(l))
	return nil
}
