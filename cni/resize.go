// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// resizePods sets the MTU of the pods' ends to the network's sizes. The host's ends belong to the host's side
// (desiredPod). A failure is logged once, and heal retries it. Until then the pod sends smaller packets where routers
// ask for it.
func (pn *podNetwork) resizePods(nw *network) {
	failed := map[key]bool{}
	for _, r := range pn.attachments.list() {
		if !r.isAlive() {
			continue
		}
		err := pn.resizePod(r, nw)
		if err == nil {
			continue
		}
		if failed[r.key()] = true; !pn.resizeErrors[r.key()] {
			pn.log.Error(err,
				"A running pod keeps its MTU; large packets of it may get lost until that can be changed, which is tried again", "pod",
				r.Pod, "after", pn.guardPeriod)
		}
	}
	pn.resizeErrors = failed
}

func (pn *podNetwork) resizePod(r *attachment, nw *network) error {
	pn.attaching.RLock()
	defer pn.attaching.RUnlock()
	ns, err := netns.GetFromPath(r.Netns)
	if err != nil {
		return nil // it has ended meanwhile
	}
	defer func() { _ = ns.Close() }()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("entering the pod's network namespace: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(r.IfName)
	if err != nil {
		return fmt.Errorf("looking for %s in the pod: %w", r.IfName, err)
	}
	var errs []error
	if link.Attrs().MTU != nw.mtu {
		errs = append(errs, h.LinkSetMTU(link, nw.mtu))
	}
	for _, ip := range r.IPs {
		i := slices.IndexFunc(nw.podCIDRs, func(c netip.Prefix) bool { return c.Contains(ip) })
		if i < 0 || !ip.Is4() {
			continue // IPv6 uses the device's MTU
		}
		errs = append(errs, h.RouteReplace(podDefault(link.Attrs().Index, gateway(nw.podCIDRs[i]), nw.sizes)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("changing the MTU of %s in the pod to %d: %w", r.IfName, nw.mtu, err)
	}
	return nil
}
