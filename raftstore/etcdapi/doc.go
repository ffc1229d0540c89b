// SPDX-License-Identifier: Apache-2.0

// Package etcdapi is etcd's v3 API for the store. It checks requests as etcd's server does, runs them, and answers with
// etcd's messages and errors.
//
// Two packages use it: etcdclient, for clients in the store's process, and etcdgrpc, for all others. A put takes this
// path,
//
//	etcdclient or etcdgrpc → API.Put → Store.Write → raft's log → mvcc.State
//
// and its answer takes the same path back. The package starts no goroutine, and knows nothing of raft or of
// connections.
package etcdapi
