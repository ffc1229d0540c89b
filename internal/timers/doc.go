// SPDX-License-Identifier: Apache-2.0

// Package timers aligns periodic work on shared ticks and sets how late the kernel may wake the process.
package timers
