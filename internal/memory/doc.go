// SPDX-License-Identifier: Apache-2.0

// Package memory determines how much memory a process may use, adapts the garbage collector to that limit, and gives
// memory that is not used any more back to the kernel.
package memory
