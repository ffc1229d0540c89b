// SPDX-License-Identifier: Apache-2.0

// This file lists what the kernel's network has, whole. A list over netlink comes in pieces, and what changes between
// two of them may leave out what was there all the time; the kernel says so, and then it is listed again.

package netlinkutil

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// attempts is how often something is listed. What changes so often that none succeeds is looked at later by the
// callers, who look again anyway.
const attempts = 20

// ConsistentList returns what a function of the netlink package lists, from the first time that nothing changed
// meanwhile.
func ConsistentList[T any](list func() ([]T, error)) ([]T, error) {
	var out []T
	var err error
	for range attempts {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return nil, err
}

// Addresses are those of all devices.
func Addresses(family int) ([]netlink.Addr, error) {
	return ConsistentList(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, family) })
}

// Routes are those of the main table.
func Routes(family int) ([]netlink.Route, error) {
	return ConsistentList(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
}
