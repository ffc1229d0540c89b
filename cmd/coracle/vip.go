// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/server"
	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/server/virtualip"
)

// checkVIPs returns an error for a --vip that this machine could not announce, when the cluster begins with that
// address. A --vip that differs from the address to which the cluster has changed is only logged: otherwise no server
// would start any more after coracle vip set. o has the cluster's settings.
func checkVIPs(ctx context.Context, o server.Options) error {
	if len(o.VIPs) == 0 {
		return nil
	}
	kept, known, err := clusterconfig.ReadVIPs(o.ServerDir)
	if err != nil {
		return err
	}
	if known && !slices.Equal(kept, o.VIPs) {
		o.Logger.Warn("--vip is ignored: the cluster has another virtual address. Remove the flag. To change the cluster's address while it runs: "+
			"coracle vip set ADDRESS",
			"given", virtualip.Format(o.VIPs), "cluster", virtualip.Format(kept))
		return nil
	}
	others, err := roster.ReadPeerAddresses(o.ServerDir)
	if known || err != nil || len(o.Join) > 0 || len(others) > 0 {
		return err // with other servers, one of them may already announce it; that is checked when the cluster is asked
	}
	if err := virtualip.Check(ctx, o.VIPs, o.VIPInterface, slices.Concat(o.Cluster.PodCIDRs, o.Cluster.ServiceCIDRs)); err != nil {
		return fmt.Errorf("--vip: %w. Nothing was changed", err)
	}
	return nil
}

// checkNewVIPs checks whether the cluster can have the addresses in text (separated by commas), and returns them in
// canonical form. Addresses that the cluster has already are not probed on the network: a server announces them.
func checkNewVIPs(ctx context.Context, client kubernetes.Interface, text, on string) (string, error) {
	reserved, err := clusterNetworks(ctx, client)
	if err != nil {
		return "", err
	}
	addresses, err := virtualip.Parse(text, reserved)
	if err != nil {
		return "", err
	}
	if len(addresses) == 0 {
		return "", errors.New("no address was given; to have none: coracle vip remove")
	}
	var has []netip.Addr
	m, err := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, clusterconfig.VIPConfigMap, metav1.GetOptions{})
	if err == nil {
		has, err = virtualip.Parse(m.Data[clusterconfig.VIPData], nil)
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return "", fmt.Errorf("reading the present virtual address: %w", err)
	}
	fresh := slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool { return slices.Contains(has, a) })
	if err := roster.CheckNotNodes(ctx, client, fresh); err != nil {
		return "", err
	}
	return virtualip.Format(addresses), virtualip.Check(ctx, fresh, on, reserved)
}

func clusterNetworks(ctx context.Context, client kubernetes.Interface) ([]netip.Prefix, error) {
	services, err := client.NetworkingV1().ServiceCIDRs().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading the networks of Services: %w", err)
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading the networks of pods: %w", err)
	}
	var texts []string
	for i := range services.Items {
		texts = append(texts, services.Items[i].Spec.CIDRs...)
	}
	for i := range nodes.Items {
		texts = append(texts, nodes.Items[i].Spec.PodCIDRs...)
	}
	var out []netip.Prefix
	for _, t := range texts {
		p, err := netip.ParsePrefix(t)
		if err != nil {
			return nil, fmt.Errorf("a network of the cluster: %w", err)
		}
		out = append(out, p)
	}
	return out, nil
}
