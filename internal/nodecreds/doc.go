// SPDX-License-Identifier: Apache-2.0

// Package nodecreds knows the files with which a node's components take part in the cluster, and writes kubeconfig
// files.
package nodecreds
