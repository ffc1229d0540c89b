// SPDX-License-Identifier: Apache-2.0

// Package kubecompat holds what running upstream's components in one process needs: their flags, fields that no
// function of theirs leads to, and one writer of the CSINode object.
package kubecompat
