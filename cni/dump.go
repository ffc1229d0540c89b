// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// dump lists something of the kernel's, again when it changed meanwhile: such a list may lack what was there all the time.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	const attempts = 20 // what changes so often that none succeeds is looked at later
	var out []T
	var err error
	for range attempts {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return nil, err
}

func listLinks() ([]netlink.Link, error) { return dump(netlink.LinkList) }

func listAddresses() ([]netlink.Addr, error) {
	return dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
}

func listRoutes(family int, filter *netlink.Route, mask uint64) ([]netlink.Route, error) {
	return dump(func() ([]netlink.Route, error) { return netlink.RouteListFiltered(family, filter, mask) })
}

func listNeighbours(index, family int) ([]netlink.Neigh, error) {
	return dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(index, family) })
}
