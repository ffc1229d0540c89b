// SPDX-License-Identifier: Apache-2.0

package virtualip

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/vip"
)

// notRouters returns an error for an address of one of this machine's routers. A machine that announced one would
// receive all traffic from the local network to other networks.
func notRouters(addresses []netip.Addr, routers func() ([]netip.Addr, error)) error {
	if len(addresses) == 0 {
		return nil
	}
	all, err := routers()
	if err != nil {
		return err
	}
	for _, a := range addresses {
		if slices.Contains(all, a) {
			return fmt.Errorf("%s is a router's address: the routes of this machine lead through it. Choose an address that no machine has",
				a)
		}
	}
	return nil
}

// checkUnused returns an error if new virtual addresses are in use, as far as routes, Nodes and members show. Whether
// another machine responds to them is probed before they are announced.
func (v *Addresses) checkUnused(ctx context.Context, client kubernetes.Interface, addresses []netip.Addr) error {
	routers := v.routers
	if routers == nil {
		routers = vip.Routers
	}
	if err := notRouters(addresses, routers); err != nil {
		return err
	}
	if err := roster.CheckNotNodes(ctx, client, addresses); err != nil {
		return err
	}
	for _, m := range v.o.Machines() {
		if a := m.Address.Addr().Unmap(); slices.Contains(addresses, a) {
			return fmt.Errorf("%s is the address of the machine %s of this cluster. Choose an address that no machine has", a, m.Name)
		}
	}
	return nil
}
