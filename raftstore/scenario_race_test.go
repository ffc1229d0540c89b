// SPDX-License-Identifier: Apache-2.0

//go:build race

package raftstore

// Scenarios take ten times as long with the race detector: one seed each.
func init() { racing = true }
