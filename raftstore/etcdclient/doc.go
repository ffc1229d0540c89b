// SPDX-License-Identifier: Apache-2.0

// Package etcdclient is an etcd client (clientv3, and upstream's kubernetes
// client on it) whose calls go straight into a store in the same process: no
// connection, no encoding, no copy. Keys and values in answers are the store's
// own memory, so they must not be changed.
//
// It owns one goroutine for each watch, which ends with the watch's context, what
// that goes on Until, the client or the store. It never opens or closes a store.
package etcdclient
