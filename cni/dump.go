// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"github.com/vishvananda/netlink"

	"github.com/coracle-k8s/coracle/internal/netdump"
)

func listLinks() ([]netlink.Link, error) { return netdump.Whole(netlink.LinkList) }

func listAddresses() ([]netlink.Addr, error) {
	return netdump.Addresses(netlink.FAMILY_ALL)
}

func listRoutes(family int, filter *netlink.Route, mask uint64) ([]netlink.Route, error) {
	return netdump.Whole(func() ([]netlink.Route, error) { return netlink.RouteListFiltered(family, filter, mask) })
}

func listNeighbours(index, family int) ([]netlink.Neigh, error) {
	return netdump.Whole(func() ([]netlink.Neigh, error) { return netlink.NeighList(index, family) })
}
