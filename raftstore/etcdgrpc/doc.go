// SPDX-License-Identifier: Apache-2.0

// Package etcdgrpc serves etcd's v3 API over gRPC, for etcdctl and whatever else
// speaks it. It has no authentication of its own: who can connect may do
// everything.
//
// It owns the gRPC server, its connections and streams, and one goroutine for
// each watch. Serve ends and waits for them all.
package etcdgrpc
