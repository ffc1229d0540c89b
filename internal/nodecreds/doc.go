// SPDX-License-Identifier: Apache-2.0

// Package nodecreds defines the files with the credentials of a node's components, and writes kubeconfig files.
package nodecreds
