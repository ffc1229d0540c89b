// SPDX-License-Identifier: Apache-2.0

// Package raftstore is the API server's only database: etcd's v3 contract over
// a replicated log, in the process that uses it.
//
// It owns a directory (log, snapshots, identity), a Raft node (hashicorp/raft)
// and the state machine that the log drives (package mvcc). It offers the etcd
// client interfaces that upstream's storage layer calls, natively and without
// gRPC between (Store.Client), and the same contract over gRPC for everything
// else (Store.ServeGRPC).
//
// It never acknowledges a write that is not on disk, never serves bytes whose
// checksum is wrong, and never overwrites a file it cannot read. It knows
// nothing of Kubernetes objects. DESIGN.md has the invariants, the file
// formats and the goroutines.
package raftstore
