// SPDX-License-Identifier: Apache-2.0

// Package vip makes one address of a network lead to one of several machines, by answering ARP (RFC 826, RFC 5227) and
// neighbour discovery (RFC 4861) for it from this process.
//
// The address is on no interface, so the kernel answers nothing for it: a process that is paused or has ended is
// silent. What comes in for the address is translated to an address of the machine by nftables rules (Redirects), and
// that needs no process.
//
// It owns its packet sockets and the nftables tables named Table. It does not decide which machine has the address: the
// caller of Announce says, for each answer, until when this machine may give it (Announcement.Confirm). It never
// changes addresses, routes or kernel settings.
package vip
