// SPDX-License-Identifier: Apache-2.0

// Package vip makes one address of a network lead to one of several machines: this process replies for it to ARP (RFC
// 826, RFC 5227) and neighbour discovery (RFC 4861).
//
// No interface has the address, so the kernel never replies for it, and neither does a process that is paused or has
// ended. nftables rules (Redirects) translate packets to the address to an address of the machine, which needs no
// process.
//
// It owns its packet sockets and the nftables tables named Table. It does not decide which machine has the address: the
// caller of Announce confirms, for each reply, until when this machine may send it (Announcement.Confirm). It never
// changes addresses, routes or kernel settings.
//
// Its goroutines: one for each announced address, beside the caller that reads its sockets.
package vip
