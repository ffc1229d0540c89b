// SPDX-License-Identifier: Apache-2.0

//go:build race

package raftstore

// racing: with the race detector scenarios take ten times as long, so one seed
// each has to do.
const racing = true
