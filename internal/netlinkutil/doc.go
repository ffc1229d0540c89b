// SPDX-License-Identifier: Apache-2.0

// Package netlinkutil lists what the kernel's network has, and runs functions that change a thread's namespaces.
package netlinkutil
