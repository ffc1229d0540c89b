//go:build twolevels

// SPDX-License-Identifier: Apache-2.0

package level

// minors of a build of the tests alone. Both are this program's Kubernetes: the first one emulates the version before,
// with its real feature gates and storage versions.
var minors = []string{"1.36", "1.37"}
