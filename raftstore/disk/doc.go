// SPDX-License-Identifier: Apache-2.0

// Package disk keeps a store's files in its directory: an identity, the Raft log, Raft's few variables (a bbolt file),
// snapshots, and a note of the other servers' addresses.
//
// It owns the checks that find damage before anything is served. Every file is examined before it is used. Everything
// that is read has a checksum of ours, which is verified. A damaged file is named in a DamageError and left alone. It
// also owns the handling of a full or failing disk: writes wait, nothing is lost and the process does not exit. A
// caller can ask how long the oldest write has been waiting.
//
// It never repairs. It deletes only entries that raft deletes, what a newer snapshot covers, its own temporary files
// and its reserved space. A damaged directory is renamed at most.
package disk
