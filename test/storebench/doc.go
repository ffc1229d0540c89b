// SPDX-License-Identifier: Apache-2.0

// Storebench measures the store beside etcd: same machine, same run, same client, same durability, in turns. It starts
// the servers of both (test/storenode and etcd built from its module) as processes, loads them by way of
// test/storebench/load, and prints one table and a file of JSON. It never judges.
//
//	rates.go     writes, reads and lists       failover.go  killed leaders, with and without a starved processor
//	watches.go   a thousand watchers           memory.go    resident memory, restart with 100,000 objects
//	disk.go      bytes and flushes per write   report.go    the table
package main
