// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"time"

	"github.com/coracle-k8s/coracle/test/proc"
)

// anonymous returns the MB of a process' anonymous memory.
func anonymous(pid int) float64 { return proc.StatusMB(pid, "RssAnon:") }

func memorySize() string {
	return fmt.Sprintf("%.0f GB", float64(proc.Field("/proc/meminfo", "MemTotal:"))/1e6)
}

// burn keeps one processor busy.
func burn(d time.Duration) {
	x := 1.0
	for end := time.Now().Add(d); time.Now().Before(end); {
		for i := range 1_000_000 {
			x += math.Sqrt(float64(i))
		}
	}
	fmt.Println(x) // or the compiler might leave it out
}
