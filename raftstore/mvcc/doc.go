// SPDX-License-Identifier: Apache-2.0

// Package mvcc is the state machine of the store: an ordered map from keys to
// values in which every write makes a new revision, as etcd's contract has it.
//
// It owns the keys, their history inside the compaction window, leases as data,
// and the sessions by which a command that comes twice is run once. Commands go
// in, results come out, and it owns how both are encoded. It never reads a clock
// or a random source, opens a file or speaks to a network, so the same commands
// in the same order give the same state on every server.
//
// One goroutine applies commands to a State. Any number of goroutines read the
// immutable Views that State.Freeze makes; a View costs a few hundred bytes.
package mvcc
