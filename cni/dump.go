// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"github.com/vishvananda/netlink"

	"github.com/coracle-k8s/coracle/internal/netlinkutil"
)

func listLinks() ([]netlink.Link, error) { return netlinkutil.ConsistentList(netlink.LinkList) }

func listAddresses() ([]netlink.Addr, error) {
	return netlinkutil.Addresses(netlink.FAMILY_ALL)
}

func listRoutes(family int, filter *netlink.Route, mask uint64) ([]netlink.Route, error) {
	return netlinkutil.ConsistentList(func() ([]netlink.Route, error) { return netlink.RouteListFiltered(family, filter, mask) })
}

func listNeighbours(index, family int) ([]netlink.Neigh, error) {
	return netlinkutil.ConsistentList(func() ([]netlink.Neigh, error) { return netlink.NeighList(index, family) })
}
