// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/klog/v2"
	upstream "k8s.io/kubernetes/pkg/proxy"
	"k8s.io/kubernetes/pkg/proxy/conntrack"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"
	"sigs.k8s.io/knftables"

	"github.com/coracle-k8s/coracle/internal/nft"
)

// Options are what a Proxier needs.
type Options struct {
	NodeName string
	// ClusterCIDRs hold all pods; their families are those that are served.
	ClusterCIDRs []netip.Prefix
	// NodePortAddresses are CIDRs of the local addresses that answer on node ports.
	NodePortAddresses []string
	// NeverLocal are addresses that must not become this node's because of a Service: those of the cluster's other
	// nodes, as far as they are known, and the API's virtual address. It may be nil.
	NeverLocal func() []netip.Addr
	// Scheduler is for Services that name none, or one that does not exist; empty is DefaultScheduler.
	Scheduler string
	// Health says for health check node ports whether this proxy is well.
	Health *healthcheck.ProxyHealthServer
	Logger klog.Logger

	nft func(knftables.Family) (knftables.Interface, error) // but for tests, the program's
}

// Proxier holds the objects that it received, and makes the kernel follow at Sync. The On methods may be called from
// anywhere, the others from one goroutine.
type Proxier struct {
	o           Options
	families    []*family
	substitutes substitutes

	mu           sync.Mutex
	topology     map[string]string
	serviceCIDRs []netip.Prefix
}

// family is all of one family.
type family struct {
	name        corev1.IPFamily
	netlink     int
	clusterCIDR []netip.Prefix
	changes     *upstream.ServiceChangeTracker
	slices      *upstream.EndpointsChangeTracker
	services    upstream.ServicePortMap
	endpoints   upstream.EndpointsMap
	health      healthcheck.ServiceHealthServer
	conntrack   conntrack.Interface
	stale       bool // datagrams' connections need cleaning

	kernel *kernel
	apply  applier
	rules  rulesWriter
	ledger *ledger // nil before the first sync
	// addresses are what the device has, as far as the last sync knows; nil: not known.
	addresses map[netip.Addr]bool
}

// New returns a Proxier for a kernel that Find has found to have all that it needs. Nothing in the kernel changes.
func New(o Options) (*Proxier, error) {
	o.Scheduler = cmp.Or(o.Scheduler, DefaultScheduler)
	if !slices.Contains(Schedulers, o.Scheduler) {
		return nil, fmt.Errorf("%q is no scheduler of IPVS; there are %v", o.Scheduler, Schedulers)
	}
	if o.nft == nil {
		o.nft = func(f knftables.Family) (knftables.Interface, error) { return knftables.New(f, nft.IPVSTable) }
	}
	p := &Proxier{o: o}
	for _, name := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
		f, err := p.family(name)
		if err != nil {
			p.Close()
			return nil, err
		}
		if f == nil {
			continue
		}
		p.families = append(p.families, f)
	}
	return p, nil
}

// family is nil where the cluster has no pods of it.
func (p *Proxier) family(name corev1.IPFamily) (*family, error) {
	f := &family{name: name, netlink: netlink.FAMILY_V4, services: upstream.ServicePortMap{}, endpoints: upstream.EndpointsMap{},
		conntrack: conntrack.New()}
	nftFamily := knftables.IPv4Family
	f.rules.view.family = rules4
	if name == corev1.IPv6Protocol {
		f.netlink, nftFamily, f.rules.view.family = netlink.FAMILY_V6, knftables.IPv6Family, rules6
	}
	for _, c := range p.o.ClusterCIDRs {
		if c.Addr().Is6() == (name == corev1.IPv6Protocol) {
			f.clusterCIDR = append(f.clusterCIDR, c.Masked())
		}
	}
	if len(f.clusterCIDR) == 0 {
		return nil, nil
	}
	f.rules.view.clusterCIDRs = f.clusterCIDR
	var err error
	if f.rules.nft, err = p.o.nft(nftFamily); err != nil {
		return nil, fmt.Errorf("preparing nftables, which IPVS needs beside it: %w", err)
	}
	if f.kernel, err = openKernel(name); err != nil {
		return nil, err
	}
	f.apply.table = f.kernel
	f.changes = upstream.NewServiceChangeTracker(name, newServicePort, nil)
	f.slices = upstream.NewEndpointsChangeTracker(name, p.o.NodeName, nil, nil)
	ports := proxyutil.NewNodePortAddresses(name, p.o.NodePortAddresses)
	f.health = healthcheck.NewServiceHealthServer(p.o.NodeName, nil, ports, p.o.Health, name)
	return f, nil
}

// table is that of nftables.
func (f *family) table() nft.Table {
	if f.name == corev1.IPv6Protocol {
		return nft.Table{Family: nft.IPv6, Name: nft.IPVSTable}
	}
	return nft.Table{Family: nft.IPv4, Name: nft.IPVSTable}
}

// Close lets go of what New opened. What is in the kernel stays.
func (p *Proxier) Close() {
	for _, f := range p.families {
		f.kernel.close()
	}
}

// OnServiceUpdate notes a Service that came (old is nil), changed or went (svc is nil).
func (p *Proxier) OnServiceUpdate(old, svc *corev1.Service) {
	for _, f := range p.families {
		f.changes.Update(old, svc)
	}
}

// OnEndpointSlice notes a slice that came, changed or went.
func (p *Proxier) OnEndpointSlice(s *discoveryv1.EndpointSlice, deleted bool) {
	for _, f := range p.families {
		f.slices.EndpointSliceUpdate(s, deleted)
	}
}

// OnTopologyChange notes this node's topology labels.
func (p *Proxier) OnTopologyChange(labels map[string]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.topology = maps.Clone(labels)
}

// OnServiceCIDRsChanged notes the whole set. A full sync looks at it.
func (p *Proxier) OnServiceCIDRsChanged(cidrs []string) {
	var out []netip.Prefix
	for _, c := range cidrs {
		if prefix, err := netip.ParsePrefix(c); err == nil {
			out = append(out, prefix.Masked())
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serviceCIDRs = out
}

// Sync brings the kernel to the received state: the difference, or with full all of it. After an error the next one is
// full.
func (p *Proxier) Sync(ctx context.Context, full bool) error {
	p.mu.Lock()
	topology, cidrs := p.topology, p.serviceCIDRs
	p.mu.Unlock()
	local, err := localAddresses()
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range p.families {
		start := time.Now()
		changes, services := f.update()
		if full {
			f.rules.view.serviceCIDRs = nil
			for _, c := range cidrs {
				if c.Addr().Is6() == (f.name == corev1.IPv6Protocol) {
					f.rules.view.serviceCIDRs = append(f.rules.view.serviceCIDRs, c)
				}
			}
		}
		if full || f.ledger == nil {
			f.ledger = newLedger()
		}
		f.ledger.update(p.view(f, topology, local), services)
		err := f.write(ctx, full)
		f.tried(start)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.name, err))
		} else {
			f.served(changes)
		}
		// What the kernel refuses of one Service must not cost others their health checks and their datagrams.
		f.after(p.o, err == nil)
	}
	p.substitutes.report(p.o.Logger, p.o.Scheduler, p.families)
	return errors.Join(errs...)
}

func (p *Proxier) view(f *family, topology map[string]string, local map[netip.Addr]bool) View {
	v := View{
		Services: f.services, Endpoints: f.endpoints, NodeName: p.o.NodeName, Topology: topology, NeverLocal: map[netip.Addr]bool{},
		Scheduler: p.o.Scheduler,
	}
	neverLocal := func(a netip.Addr) {
		// Each pod's device may have an address of its link: it is no Service's, and must not make the view another
		// one.
		if a.Is6() == (f.name == corev1.IPv6Protocol) && !(a.Is6() && a.IsLinkLocalUnicast()) {
			v.NeverLocal[a] = true
		}
	}
	for a := range local {
		neverLocal(a)
	}
	if p.o.NeverLocal != nil {
		for _, a := range p.o.NeverLocal() {
			neverLocal(a)
		}
	}
	var ranges []netip.Prefix
	for _, c := range p.o.NodePortAddresses {
		if prefix, err := netip.ParsePrefix(c); err == nil {
			ranges = append(ranges, prefix)
		}
	}
	for a := range local {
		if a.Is6() == (f.name == corev1.IPv6Protocol) && !a.IsLoopback() && !a.IsLinkLocalUnicast() && contains(ranges, a) {
			v.NodePortAddrs = append(v.NodePortAddrs, a)
		}
	}
	slices.SortFunc(v.NodePortAddrs, netip.Addr.Compare)
	return v
}

// update takes in the received changes. It returns when that changed, by Service, and all Services that changed, or
// whose endpoints did.
func (f *family) update() (map[types.NamespacedName][]time.Time, sets.Set[types.NamespacedName]) {
	services := f.services.Update(f.changes)
	result := f.endpoints.Update(f.slices)
	if result.ConntrackCleanupRequired {
		f.stale = true
	}
	return result.LastChangeTriggerTimes, services.UpdatedServices.Union(result.UpdatedServices)
}

// write orders the steps so that nothing is open before it is guarded, and nothing is taken away before what replaces
// it is there.
func (f *family) write(ctx context.Context, full bool) error {
	s, t := f.ledger.state, f.ledger.touched
	if err := f.rules.apply(ctx, s.Sets, t.members, full); err != nil {
		return err
	}
	moved := full || f.addresses == nil || !maps.Equal(f.addresses, s.Addresses)
	if moved {
		f.addresses = nil
		if err := applyAddresses(f.netlink, s.Addresses, false); err != nil {
			return err
		}
	}
	// One virtual server that is refused does not keep the addresses of deleted Services from others: those are as
	// they should be.
	err := f.apply.apply(s.Servers, t.servers, full)
	if moved {
		err = errors.Join(err, applyAddresses(f.netlink, s.Addresses, true))
	}
	if err != nil {
		return err
	}
	if moved {
		f.addresses = maps.Clone(s.Addresses)
	}
	f.ledger.written()
	return nil
}

// after does what may wait until connections go the right way. Where not all of them do yet, it is to be done again.
func (f *family) after(o Options, all bool) {
	if o.Health != nil {
		o.Health.Updated(f.name)
	}
	if err := errors.Join(f.health.SyncServices(f.services.HealthCheckNodePorts()),
		f.health.SyncEndpoints(f.endpoints.LocalReadyEndpoints())); err != nil {
		o.Logger.Error(err, "Not all health check node ports answer", "family", f.name)
	}
	if f.stale {
		f.stale = !all
		conntrack.CleanStaleEntries(f.conntrack, f.name, f.services, f.endpoints)
	}
}

// HasDraining says whether real servers are on their way out, so that another Sync is due in a while though nothing
// changes.
func (p *Proxier) HasDraining() bool {
	return slices.ContainsFunc(p.families, func(f *family) bool { return len(f.apply.draining) > 0 })
}

// Prepare sets what IPVS goes by and makes the device.
func (p *Proxier) Prepare() error {
	if err := setSysctls(); err != nil {
		return err
	}
	for _, f := range p.families {
		if err := f.kernel.setIdleTime(); err != nil {
			return err
		}
	}
	_, err := ensureDevice()
	return err
}

// Intact says whether what Sync made is still there.
func (p *Proxier) Intact() (bool, error) {
	if ok, err := p.deviceIntact(); err != nil || !ok {
		return false, err
	}
	for _, f := range p.families {
		if ok, err := f.rules.intact(f.table()); err != nil || !ok {
			return false, err
		}
		servers, err := f.kernel.Servers()
		if errors.Is(err, ErrLost) {
			return false, nil // the sync that this asks for fails, and says it
		}
		if err != nil {
			return false, err
		}
		if f.apply.known != nil && len(servers) != len(f.apply.known) {
			return false, nil
		}
	}
	return true, nil
}
