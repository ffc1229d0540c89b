// SPDX-License-Identifier: Apache-2.0

// Package timers aligns periodic work to shared moments and sets how late the kernel may wake the process. It also has
// functions that wait for a duration, the end of a context, or a signal of another goroutine.
package timers
