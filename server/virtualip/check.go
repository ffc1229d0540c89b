// SPDX-License-Identifier: Apache-2.0

package virtualip

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/vip"
)

// notRouters refuses addresses of this machine's routers. Who answers for those reads what every machine of the network
// sends elsewhere.
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

// free says whether addresses that the cluster did not have before can be its own, as far as routes, Nodes and members
// tell. Whether another machine answers for them is found out before they are announced.
func (v *Addresses) free(ctx context.Context, client kubernetes.Interface, addresses []netip.Addr) error {
	routers := v.routers
	if routers == nil {
		routers = vip.Routers
	}
	if err := notRouters(addresses, routers); err != nil {
		return err
	}
	return v.o.CheckFree(ctx, client, addresses)
}
