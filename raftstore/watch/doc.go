// SPDX-License-Identifier: Apache-2.0

// Package watch follows keys and ranges of keys: it makes events from the versions that the state machine makes, for
// any number of watchers.
//
// It owns the hub, the watchers' queues and their reads of the history. It never writes, never waits for a watcher, and
// knows nothing of connections: the packages that serve etcd's API run one goroutine for each watcher, which sleeps in
// Watcher.Next.
//
// A watcher is either in step with the hub or behind it. A watcher that is behind reads the history itself
// (mvcc.View.History). It changes from behind to in step under the hub's lock, only when its position is beyond what
// the hub has dispatched. If compaction overtakes it, it ends and reports the compaction revision.
package watch
