// SPDX-License-Identifier: Apache-2.0

// This file returns complete lists of the kernel's network objects. A list over netlink arrives in several messages. A
// change between two messages may omit an object that existed all the time. The kernel reports such a change, and then
// the list is requested again.

package netlinkutil

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// maxAttempts is how often a list is requested. If changes are so frequent that no attempt succeeds, the callers try
// again later, as they do anyway.
const maxAttempts = 20

// ConsistentList calls list again while the kernel reports that something changed during the listing, at most 20 times
// (attempts). After that it returns the error.
func ConsistentList[T any](list func() ([]T, error)) ([]T, error) {
	var out []T
	var err error
	for range maxAttempts {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return nil, err
}

// Addresses returns the addresses of all devices.
func Addresses(family int) ([]netlink.Addr, error) {
	return ConsistentList(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, family) })
}

// Routes returns the routes of the main table.
func Routes(family int) ([]netlink.Route, error) {
	return ConsistentList(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
}
