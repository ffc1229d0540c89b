// SPDX-License-Identifier: Apache-2.0

// Package timers aligns periodic work on shared ticks and sets how late the kernel may wake the process. It waits for a
// time to pass, a context to end, or a signal of another goroutine.
package timers
