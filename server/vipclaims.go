// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
			return fmt.Errorf("%s is a router's address: the routes of this machine lead through it. Choose an address that nobody has", a)
		}
	}
	return nil
}

// NotNodes refuses addresses that a Node says are its own: its machine may be off, so that the network does not know
// it.
func NotNodes(ctx context.Context, client kubernetes.Interface, addresses []netip.Addr) error {
	if len(addresses) == 0 {
		return nil
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("asking for the nodes' addresses: %w", err)
	}
	for i := range nodes.Items {
		for _, has := range nodes.Items[i].Status.Addresses {
			a, err := netip.ParseAddr(has.Address)
			if err == nil && has.Type == corev1.NodeInternalIP && slices.Contains(addresses, a.Unmap()) {
				return fmt.Errorf("%s is the address of the node %s. Choose an address that nobody has", a, nodes.Items[i].Name)
			}
		}
	}
	return nil
}

// free says whether addresses that the cluster did not have before can be its own, as far as routes, Nodes and members
// tell. Whether somebody else answers for them is found out before they are announced.
func (v *vips) free(ctx context.Context, client kubernetes.Interface, addresses []netip.Addr) error {
	routers := v.routers
	if routers == nil {
		routers = vip.Routers
	}
	if err := notRouters(addresses, routers); err != nil {
		return err
	}
	if err := NotNodes(ctx, client, addresses); err != nil {
		return err
	}
	for _, m := range v.s.Members() {
		if slices.Contains(addresses, m.Address.Addr().Unmap()) {
			return fmt.Errorf("%s is the address of the machine %s of this cluster. Choose an address that nobody has", m.Address.Addr().Unmap(), m.Name)
		}
	}
	return nil
}
