// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/nft"
)

// CleanupOptions are the folders from which Cleanup removes files. An empty name is ignored.
type CleanupOptions struct {
	StateDir string
	ConfDir  string
}

// Cleanup removes everything that a Server made on this host: pods' devices with their routes, the connections to other
// nodes, the bridge, the nftables table, addresses, attachments and the CNI configuration. Running pods lose their
// network. After an error it continues with the rest. It needs no program.
func Cleanup(o CleanupOptions) error {
	var errs []error
	if o.ConfDir != "" {
		errs = append(errs, removeConflist(o.ConfDir))
	}
	links, err := listLinks()
	if err != nil {
		errs = append(errs, fmt.Errorf("listing devices: %w", err))
	}
	for _, l := range links {
		name := l.Attrs().Name
		if isPodDevice(l) || l.Type() == kindBridge && name == Bridge || strings.HasPrefix(name, tunnelPrefix) {
			errs = append(errs, removeDevice(name))
		}
	}
	errs = append(errs, removeRoutes())
	errs = append(errs, nft.Delete(ownTable()))
	if o.StateDir != "" {
		if err := os.RemoveAll(o.StateDir); err != nil {
			errs = append(errs, fmt.Errorf("removing the state of the pod network: %w", err))
		}
	}
	return errors.Join(errs...)
}

// removeRoutes removes our routes, except those that the kernel has removed with their device.
func removeRoutes() error {
	var errs []error
	for _, family := range kernelFamilies() {
		mine := &netlink.Route{Table: unix.RT_TABLE_MAIN, Protocol: routeProtocol}
		routes, err := listRoutes(family, mine, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			errs = append(errs, fmt.Errorf("listing routes: %w", err))
		}
		for _, r := range routes {
			if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("removing the route to %s: %w", r.Dst, err))
			}
		}
	}
	return errors.Join(errs...)
}
