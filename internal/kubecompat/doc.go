// SPDX-License-Identifier: Apache-2.0

// Package kubecompat holds what is needed to run upstream's components in one process: parsing of their flags, access
// to unexported fields, and a guard that leaves one writer of the CSINode object.
package kubecompat
