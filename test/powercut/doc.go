// SPDX-License-Identifier: Apache-2.0

// Package powercut cuts the power of a machine whose disk holds a store, again
// and again, and checks after each cut that the store kept its promises.
//
// The machine is a User-Mode Linux kernel (the second kernel of these tests): a
// plain process, whose death is a power cut. Killing it is too kind to a store,
// though, because what the guest wrote without a flush is in the host's page
// cache and survives. So the guest's disk is a device of this package, reached
// over vhost-user, with a volatile write cache: what was not flushed when the
// power went is there in part, sector by sector, as the seed decides.
//
// The package owns the disk (disk.go), the device (vhost.go, ring.go), the guest
// (machine.go and the program in guest/) and the judgement (ledger.go). It never
// judges by the store's files: only what a client is answered counts.
package powercut
