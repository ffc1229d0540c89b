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

	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/proxy/healthports"
)

// Options configure a Proxier.
type Options struct {
	NodeName string
	// ClusterCIDRs contain all pods. Their families are served.
	ClusterCIDRs []netip.Prefix
	// NodePortAddresses are CIDRs of the local addresses that serve node ports.
	NodePortAddresses []string
	// Protected returns addresses that this node must not get because of a Service: the known addresses of the
	// cluster's other nodes, and the API's virtual address. It may be nil.
	Protected func() []netip.Addr
	// Scheduler is the scheduler for Services that name none, or one that does not exist. Empty means DefaultScheduler.
	Scheduler string
	// Health reports for health check node ports whether this proxy works.
	Health *healthcheck.ProxyHealthServer
	Logger klog.Logger

	nft func(knftables.Family) (knftables.Interface, error) // the program's, except in tests
}

// Proxier stores the objects that it receives, and writes them to the kernel in Sync. The On methods are safe for
// concurrent use. The others have to be called from one goroutine.
type Proxier struct {
	o           Options
	families    []*family
	substitutes substitutes

	mu           sync.Mutex
	topology     map[string]string
	serviceCIDRs []netip.Prefix
}

// family has the Services of one address family, and what the kernel has of them.
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
	stale       bool // conntrack entries of UDP need cleaning

	kernel *kernel
	apply  applier
	rules  rulesWriter
	ledger *ledger // nil before the first sync
	// addresses are the device's addresses, as of the last sync. nil means unknown.
	addresses map[netip.Addr]bool
}

// New returns a Proxier. Find has to have found that the kernel has all that it needs. New changes nothing in the
// kernel.
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

// family returns nil where the cluster has no pods of that family.
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
	if err := healthports.Bound(f.health); err != nil {
		f.kernel.close()
		return nil, err
	}
	return f, nil
}

// table returns the family's nftables table.
func (f *family) table() nft.Table {
	if f.name == corev1.IPv6Protocol {
		return nft.Table{Family: nft.IPv6, Name: nft.IPVSTable}
	}
	return nft.Table{Family: nft.IPv4, Name: nft.IPVSTable}
}

// Close closes what New opened. The kernel's state stays.
func (p *Proxier) Close() {
	for _, f := range p.families {
		f.kernel.close()
	}
}

// OnServiceUpdate records a Service that was added (old is nil), changed or deleted (svc is nil).
func (p *Proxier) OnServiceUpdate(old, svc *corev1.Service) {
	for _, f := range p.families {
		f.changes.Update(old, svc)
	}
}

// OnEndpointSlice records a slice that was added, changed or deleted.
func (p *Proxier) OnEndpointSlice(s *discoveryv1.EndpointSlice, deleted bool) {
	for _, f := range p.families {
		f.slices.EndpointSliceUpdate(s, deleted)
	}
}

// OnTopologyChange records this node's topology labels.
func (p *Proxier) OnTopologyChange(labels map[string]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.topology = maps.Clone(labels)
}

// OnServiceCIDRsChanged records all Service CIDRs. Only a full sync uses them.
func (p *Proxier) OnServiceCIDRsChanged(cidrs []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serviceCIDRs = convert.Slice(convert.Valid(cidrs, netip.ParsePrefix), netip.Prefix.Masked)
}

// Sync writes the received state to the kernel: the difference, or with full everything. After an error the next call
// has to be full.
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
			f.recordLatency(changes)
		}
		// A Service that the kernel rejects must not keep others from their health checks and their conntrack cleaning.
		f.cleanUp(p.o, err == nil)
	}
	p.substitutes.report(p.o.Logger, p.o.Scheduler, p.families)
	return errors.Join(errs...)
}

func (p *Proxier) view(f *family, topology map[string]string, local map[netip.Addr]bool) View {
	v := View{
		Services: f.services, Endpoints: f.endpoints, NodeName: p.o.NodeName, Topology: topology, Protected: map[netip.Addr]bool{},
		Scheduler: p.o.Scheduler,
	}
	neverLocal := func(a netip.Addr) {
		// A pod's device may have a link-local address. It is no Service's, and must not make the view differ from the
		// last one.
		if a.Is6() == (f.name == corev1.IPv6Protocol) && !(a.Is6() && a.IsLinkLocalUnicast()) {
			v.Protected[a] = true
		}
	}
	for a := range local {
		neverLocal(a)
	}
	if p.o.Protected != nil {
		for _, a := range p.o.Protected() {
			neverLocal(a)
		}
	}
	ranges := convert.Valid(p.o.NodePortAddresses, netip.ParsePrefix)
	for a := range local {
		if a.Is6() == (f.name == corev1.IPv6Protocol) && !a.IsLoopback() && !a.IsLinkLocalUnicast() && contains(ranges, a) {
			v.NodePortAddrs = append(v.NodePortAddrs, a)
		}
	}
	slices.SortFunc(v.NodePortAddrs, netip.Addr.Compare)
	return v
}

// update applies the received changes. It returns the times of the changes by Service, and all Services that changed or
// whose endpoints did.
func (f *family) update() (map[types.NamespacedName][]time.Time, sets.Set[types.NamespacedName]) {
	services := f.services.Update(f.changes)
	result := f.endpoints.Update(f.slices)
	if result.ConntrackCleanupRequired {
		f.stale = true
	}
	return result.LastChangeTriggerTimes, services.UpdatedServices.Union(result.UpdatedServices)
}

// write orders the steps so that nothing is reachable before it is guarded, and nothing is removed before its
// replacement exists.
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
	// One virtual server that the kernel rejects must not delay the removal of deleted Services' addresses: the
	// addresses are correct.
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

// cleanUp does the work that can wait until connections are balanced correctly. If all is false, conntrack has to be
// cleaned once more.
func (f *family) cleanUp(o Options, all bool) {
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

// HasDraining reports whether real servers are draining, so that another Sync is due in a while although nothing
// changes.
func (p *Proxier) HasDraining() bool {
	return slices.ContainsFunc(p.families, func(f *family) bool { return len(f.apply.draining) > 0 })
}

// Prepare sets the sysctls and timeouts that IPVS needs, and makes the device.
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

// Intact reports whether the result of Sync still exists.
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
			return false, nil // the sync that follows fails, and reports it
		}
		if err != nil {
			return false, err
		}
		if f.apply.applied != nil && len(servers) != len(f.apply.applied) {
			return false, nil
		}
	}
	return true, nil
}
