// SPDX-License-Identifier: Apache-2.0

// Package netlinkutil lists addresses and routes of the kernel, and runs functions that change a thread's namespaces.
//
// Its goroutines: one for each function, on a thread that ends with it.
package netlinkutil
