// SPDX-License-Identifier: Apache-2.0

// Package disk is what a store keeps in its directory: an identity, the Raft
// log, Raft's own few variables (a bbolt file), snapshots, and a note of where
// the other servers are.
//
// It owns the checks that make damage known before anything is served: every
// file is examined before it is used, everything read has a checksum of ours
// verified, and a file that is not what was written is named in a DamageError
// and left alone. It also owns what happens when the disk is full or fails:
// writes wait, nothing is lost, nothing exits, and a caller that asks learns how long
// the oldest write has been waiting.
//
// It never repairs. What it deletes is what raft gave up, what a newer snapshot
// covers, its own temporary files and the space it holds in reserve. A damaged
// directory is renamed at most.
package disk
