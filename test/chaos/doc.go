// SPDX-License-Identifier: Apache-2.0

// Package chaos checks that the store keeps etcd's promises while its servers are killed, paused, cut off, starved of
// disk, damaged, added and removed.
//
// Every server is a process (test/storenode) in a network namespace of its own, with peers over mutual TLS; clients
// use etcd's own client against each server apart. All that they did and saw is kept, and judged afterwards
// (test/history). The faults (nemesis) follow from a seed; when something is wrong, the history and the servers' logs
// stay, and the test says where.
//
// It never touches an interface, a mount or a process that it did not make.
package chaos
