// SPDX-License-Identifier: Apache-2.0

// Package timers aligns periodic work to shared moments and sets how late the kernel may wake the process. It also has
// functions and types that wait for a duration, the end of a context, a signal of another goroutine, or a change.
package timers
