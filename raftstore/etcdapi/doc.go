// SPDX-License-Identifier: Apache-2.0

// Package etcdapi is etcd's v3 API over the store: requests are checked as etcd's
// server checks them, run, and answered with etcd's messages and errors.
//
// It is what the two ways to the store share: package etcdclient, for who uses
// the store in its process, and package etcdgrpc, for everybody else. A put goes
//
//	etcdclient or etcdgrpc → API.Put → Store.Write → raft's log → mvcc.State
//
// and its answer the same way back. The package owns nothing that runs, and
// knows nothing of raft or of connections.
package etcdapi
