// SPDX-License-Identifier: Apache-2.0

// Package etcdgrpc serves etcd's v3 API over gRPC, for etcdctl and other clients of that API. It has no authentication:
// any client that can connect may do everything.
//
// It owns the gRPC server, its connections and streams, and one goroutine for each watch. Serve ends all of them and
// waits for their end.
package etcdgrpc
