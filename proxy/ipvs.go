// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"

	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/proxy/ipvs"
)

// ipvsBackend is the back end that uses the kernel's IPVS.
type ipvsBackend struct {
	*ipvs.Proxier
	ctx context.Context // for the program nft, as in the other back end
}

var (
	_ backend = (*ipvsBackend)(nil)
	_ drainer = (*ipvsBackend)(nil)
)

// MissingForIPVS returns what this kernel lacks for IPVS with a mode, a scheduler and the pods' networks, or nil. It
// may make the kernel load its IPVS modules. Where the mode is ModeIPVS a missing scheduler is no error: the default
// one is used then.
func MissingForIPVS(mode, scheduler string, clusterCIDRs []netip.Prefix) error {
	schedulers := []string{ipvs.DefaultScheduler}
	if mode != ModeIPVS && scheduler != "" && scheduler != ipvs.DefaultScheduler {
		schedulers = append(schedulers, scheduler)
	}
	var families []corev1.IPFamily
	for _, c := range clusterCIDRs {
		if f := familyOf(c.Addr()); !slices.Contains(families, f) {
			families = append(families, f)
		}
	}
	found, err := ipvs.Find(schedulers, families)
	if err != nil {
		return err
	}
	return found.Err()
}

func openIPVS(ctx context.Context, o Options) (backend, error) {
	if err := MissingForIPVS(o.Mode, o.IPVSScheduler, o.ClusterCIDRs); err != nil {
		return nil, err
	}
	p, err := ipvs.New(ipvs.Options{
		NodeName: o.Informers.NodeName(), ClusterCIDRs: o.ClusterCIDRs, NodePortAddresses: o.nodePortNetworks(),
		Protected: o.externals.protected, Scheduler: o.IPVSScheduler,
		Health: healthcheck.NewProxyHealthServer("", retryPause+maxPause, nil), Logger: o.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("preparing IPVS: %w", err)
	}
	return &ipvsBackend{p, context.WithoutCancel(ctx)}, nil
}

func (b *ipvsBackend) ownTables() []nft.Table {
	return []nft.Table{{Family: nft.IPv4, Name: nft.IPVSTable}, {Family: nft.IPv6, Name: nft.IPVSTable}}
}

func (b *ipvsBackend) name() string          { return nft.ServicesByIPVS }
func (b *ipvsBackend) prepare() error        { return b.Prepare() }
func (b *ipvsBackend) sync(full bool) error  { return b.Sync(b.ctx, full) }
func (b *ipvsBackend) intact() (bool, error) { return b.Intact() }
func (b *ipvsBackend) OnEndpointSliceUpdate(_, s *discoveryv1.EndpointSlice) {
	b.OnEndpointSlice(s, false)
}
func (b *ipvsBackend) OnEndpointSliceDelete(s *discoveryv1.EndpointSlice) { b.OnEndpointSlice(s, true) }
