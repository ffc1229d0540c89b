// SPDX-License-Identifier: Apache-2.0

// Package mvcc is the state machine of the store: an ordered map from keys to values in which every write makes a new
// revision, as in etcd's contract.
//
// It owns the keys, their history inside the compaction window, leases as data, and the sessions by which a repeated
// command is run only once. It also owns the encoding of commands and of results. It never reads a clock or a random
// source, opens a file or uses a network. So the same commands in the same order give the same state on every server.
//
// One goroutine applies commands to a State. Any number of goroutines read the
// immutable Views that State.Freeze makes; a View costs a few hundred bytes.
package mvcc
