// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	upstream "k8s.io/kubernetes/pkg/proxy"
	kubeproxyconfig "k8s.io/kubernetes/pkg/proxy/apis/config"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"
	"k8s.io/kubernetes/pkg/proxy/metaproxier"
	upstreamnft "k8s.io/kubernetes/pkg/proxy/nftables"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"

	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/kubecompat"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/proxy/healthports"
)

const (
	// masqueradeBit is upstream's default mark bit for packets to masquerade.
	masqueradeBit = 14
)

// nftables uses upstream's nftables proxier, which receives the events unchanged.
//
// Upstream's own loop cannot be stopped, so it is not started: the front's loop calls the proxier's synchronous
// function.
type nftables struct {
	upstream.Provider
	health   *healthcheck.ProxyHealthServer // never serves; it shows whether a sync succeeded
	families []corev1.IPFamily
	stale    []*staleChains // of each family; only sync uses it and synced
	synced   bool           // the proxier received complete lists

	mu       sync.Mutex
	topology map[string]string
}

var _ backend = (*nftables)(nil)

// openNFTables runs `nft`, found on PATH, to check whether kernel and program can be used.
func openNFTables(ctx context.Context, o Options) (backend, error) {
	b := &nftables{health: healthcheck.NewProxyHealthServer("", retryPause+maxPause, nil)}
	detectors := map[corev1.IPFamily]proxyutil.LocalTrafficDetector{}
	for _, c := range o.ClusterCIDRs {
		f := familyOf(c.Addr())
		detectors[f] = proxyutil.NewDetectLocalByCIDR(c.Masked().String())
		b.families = append(b.families, f)
	}
	nodeIPs := map[corev1.IPFamily]net.IP{}
	for _, ip := range o.NodeIPs {
		nodeIPs[familyOf(ip)] = ip.AsSlice()
	}
	node, conf := o.Informers.NodeName(), nftablesConfig(o)
	of := map[corev1.IPFamily]upstream.Provider{}
	for _, f := range b.families {
		p, err := upstreamnft.NewProxier(ctx, conf, f, detectors[f], node, nodeIPs[f], nil, b.health, false)
		if err != nil {
			return nil, fmt.Errorf("preparing the nftables proxier of %s: %w", f, err)
		}
		if err := boundHealthPorts(p); err != nil {
			return nil, fmt.Errorf("preparing the nftables proxier of %s: %w", f, err)
		}
		b.trackStaleChains(ctx, p)
		b.Provider, of[f] = p, p
	}
	if len(of) == 2 {
		b.Provider = metaproxier.NewMetaProxier(of[corev1.IPv4Protocol], of[corev1.IPv6Protocol])
	}
	return b, nil
}

// boundHealthPorts bounds the connections of the health check node ports of upstream's proxier.
func boundHealthPorts(p *upstreamnft.Proxier) error {
	health, err := kubecompat.Field[healthcheck.ServiceHealthServer](p, []string{"serviceHealthServer"})
	if err != nil {
		return err
	}
	return healthports.Bound(*health)
}

func familyOf(a netip.Addr) corev1.IPFamily {
	if a.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

func nftablesConfig(o Options) *kubeproxyconfig.KubeProxyConfiguration {
	conf := &kubeproxyconfig.KubeProxyConfiguration{
		Mode:              kubeproxyconfig.ProxyModeNFTables,
		NodePortAddresses: o.nodePortNetworks(),
		SyncPeriod:        metav1.Duration{Duration: retryPause}, // for upstream's loop, which does not run
		MinSyncPeriod:     metav1.Duration{Duration: minPause},
	}
	bit := int32(masqueradeBit)
	conf.NFTables.MasqueradeBit = &bit
	return conf
}

// nodePortNetworks returns the networks of the addresses at which node ports are served.
func (o Options) nodePortNetworks() []string {
	if len(o.NodePortAddresses) > 0 {
		return o.NodePortAddresses
	}
	return convert.Slice(o.NodeIPs, func(ip netip.Addr) string { return netip.PrefixFrom(ip, ip.BitLen()).String() })
}

func (b *nftables) name() string { return nft.ServicesByNFTables }

// OnTopologyChange implements backend.
func (b *nftables) OnTopologyChange(labels map[string]string) {
	b.mu.Lock()
	b.topology = maps.Clone(labels)
	b.mu.Unlock()
	b.Provider.OnTopologyChange(labels)
}

// prepare makes empty tables: the proxier's first listing reports missing ones as an error.
func (b *nftables) prepare() error {
	for _, t := range tables(b.families) {
		if err := nft.Ensure(t); err != nil {
			return err
		}
	}
	return nil
}

func (b *nftables) sync(full bool) error {
	if full {
		// A topology change with the same labels makes the proxier do a full sync now. Its own full syncs are hourly.
		b.mu.Lock()
		topology := b.topology
		b.mu.Unlock()
		b.Provider.OnTopologyChange(topology)
	}
	if !b.synced {
		b.OnServiceSynced() // only sets a flag; the rules are written when the slices are complete
		b.synced = true
	}
	before, start := b.health.Health(), time.Now()
	// Upstream's comment on this call is "Sync unconditionally". It returns when the work is done.
	b.OnEndpointSlicesSynced()
	for _, s := range b.stale {
		s.synced(start)
	}
	after := b.health.Health()
	var errs []error
	for _, f := range b.families {
		if !after.Status[f].LastUpdated.After(before.Status[f].LastUpdated) {
			errs = append(errs, fmt.Errorf("writing the %s rules failed; the old ones stay in force, see the log", f))
		}
	}
	return errors.Join(errs...)
}

func (b *nftables) ownTables() []nft.Table { return tables(b.families) }

// intact reports whether the tables exist. Changes inside them by another program are repaired by the hourly full sync.
func (b *nftables) intact() (bool, error) {
	for _, t := range tables(b.families) {
		if ok, err := nft.Exists(t); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

func tables(families []corev1.IPFamily) []nft.Table {
	var out []nft.Table
	for _, f := range families {
		t := nft.Table{Family: nft.IPv4, Name: nft.ServiceTable}
		if f == corev1.IPv6Protocol {
			t.Family = nft.IPv6
		}
		out = append(out, t)
	}
	return out
}
