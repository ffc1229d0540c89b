// SPDX-License-Identifier: Apache-2.0

// Package etcdclient is an etcd client (clientv3, and upstream's kubernetes client based on it) whose calls go directly
// to a store in the same process: without connection, encoding or copies. Keys and values in answers are the store's
// own memory, so they must not be changed.
//
// It owns one goroutine for each watch. That ends with the watch's context, with the context given to Until, with the
// client, or with the store. The package never opens or closes a store.
package etcdclient
