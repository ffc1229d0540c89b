//go:build !twolevels

// SPDX-License-Identifier: Apache-2.0

package level

// minors are the minor versions of Kubernetes, from First on.
var minors = []string{"1.37"}
