// SPDX-License-Identifier: Apache-2.0

// Package memory finds the limit of a process's memory, paces the garbage collector by it, and gives back memory that
// is not used any more.
package memory
