// SPDX-License-Identifier: Apache-2.0

// Package proxy is the node's Service data plane: it makes the kernel send packets for Service addresses to endpoints.
//
// The front, Proxy, receives the API's events, decides when the kernel is written, and reports the result. A back end
// writes one kind of kernel state. New chooses the back end. The package owns that state: for nftables, upstream's
// tables `kube-proxy` of families ip and ip6. It stays when a Proxy stops, so that a restart of the agent interrupts no
// Service. The package never changes the pod network or other tables (package cni), and never writes to the API.
//
// Its goroutines: its loop; what follows reachability; upstream's trackers and listeners for health check node ports,
// which end with the process; those that wait for first lists.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// Options configure a Proxy. NodeIPs, ClusterCIDRs and Informers are required.
type Options struct {
	// NodeIPs are the node's addresses, at most one per family.
	NodeIPs []netip.Addr
	// ClusterCIDRs contain all pods: traffic from other sources to a Service is masqueraded. The families of
	// ClusterCIDRs are served.
	ClusterCIDRs []netip.Prefix
	// ServiceCIDRs are those with which the cluster starts. The API's ServiceCIDR objects add to them.
	ServiceCIDRs []netip.Prefix
	// NodePortAddresses are CIDRs of the local addresses that serve node ports. Empty means NodeIPs. As in upstream's
	// nftables mode, node ports are not served at 127.0.0.1.
	NodePortAddresses []string
	// Mode chooses the back end: ModeAuto, ModeIPVS or ModeNFTables. Empty means ModeAuto.
	Mode string
	// IPVSScheduler is the scheduler for Services that name none, where the back end is IPVS. Empty means round robin.
	IPVSScheduler string
	// Reserved are the addresses and ports that no Service may take.
	Reserved Reserved
	// ResolvConf is the file with the resolvers that pods inherit, beside the host's own. It may be empty.
	ResolvConf string
	// Informers are the node's shared caches, with Services. The caller runs them once the Proxy is made.
	Informers *netinformers.Informers
	// Unreachable, when set, names the nodes to whose endpoints this node sends nothing as long as other endpoints
	// remain.
	Unreachable Unreachable
	// Report, when set, is called with the error of an attempt to write the kernel's rules: after the first attempt,
	// and whenever it differs from the one before.
	Report func(error)
	// RecordFile records the back end whose state may be in this host's kernel, for nft.RemoveServiceRules. It should
	// be on a file system that a reboot empties, as a reboot empties the kernel. Without it nothing is recorded.
	RecordFile string
	// Logger is klog's own if it is the zero value.
	Logger klog.Logger

	externals *externals // made by New
}

// The front's intervals. They do not depend on the back end. A sync's duration is in Health.
const (
	// minPause and maxPause limit the pause after a sync, which is pauseFactor times as long as the sync took. So an
	// endpoint's change reaches the kernel at once, and a series of changes costs at most a tenth of a core.
	minPause    = 50 * time.Millisecond
	maxPause    = time.Second
	pauseFactor = 9
	// retryPause is the pause after a failed sync.
	retryPause = 5 * time.Second
	// fullSyncPeriod is the interval of syncs that rewrite everything, as in upstream.
	fullSyncPeriod = time.Hour
	// drainPeriod is the interval of checks whether a draining endpoint has lost its last connection.
	drainPeriod = 10 * time.Second
	// guardPeriod is the interval of checks whether another program removed the back end's state, as a restart of a
	// host firewall does.
	guardPeriod = 30 * time.Second
)

// Health is a Proxy's state, for users and for readiness checks.
type Health struct {
	// Synced means that the kernel has the rules of some complete view of the API.
	Synced bool
	// LastDuration is the duration of the last successful sync.
	LastDuration time.Duration
	// Err is the error of the last attempt, or nil.
	Err error
}

// Proxy is the front. Make one with New.
type Proxy struct {
	o             Options
	log           klog.Logger
	backend       backend
	backendReason string
	reachable     *reachabilityFilter          // EndpointSlices reach the back end through it
	guard         time.Duration                // guardPeriod, except in tests
	root          string                       // of the files with the kernel's limits; empty in tests of the front alone
	sources       []func(stop <-chan struct{}) // each runs until stop, and signals when its first list is complete
	wake          timers.Signal

	nodesSynced func() bool // the addresses that no Service may have are known

	mu             sync.Mutex
	servicesSynced bool
	slicesSynced   bool
	fullSync       bool      // the next sync rewrites everything
	lastFullSync   time.Time // when the last sync began that rewrote everything, zero when none has
	zone           string
	serviceCIDRs   []string
	lastHealth     Health
}

// New chooses a back end, logs which one and why, and connects it to the informers. It changes nothing in the kernel
// yet.
func New(ctx context.Context, o Options) (*Proxy, error) {
	if len(o.NodeIPs) == 0 || len(o.ClusterCIDRs) == 0 || o.Informers == nil {
		return nil, errors.New("proxy: NodeIPs, ClusterCIDRs and Informers are required")
	}
	if o.Logger.GetSink() == nil {
		o.Logger = klog.Background()
	}
	log := o.Logger.WithName("proxy")
	ctx = klog.NewContext(ctx, log)
	from, err := candidatesOf(o.Mode)
	if err != nil {
		return nil, err
	}
	o.externals = newExternals(o, log)
	chosen, why, err := choose(ctx, o, from)
	if err != nil {
		return nil, err
	}
	log.Info("Chose the Service proxy's back end", "backend", chosen.name(), "reason", why)
	showMetrics(chosen.name())
	return newProxy(ctx, o, chosen, why)
}

func newProxy(ctx context.Context, o Options, b backend, why string) (*Proxy, error) {
	p := &Proxy{
		backendReason: why, o: o, log: klog.FromContext(ctx), backend: b, reachable: newReachabilityFilter(b),
		guard: guardPeriod, root: "/",
		wake: timers.NewSignal(),
	}
	p.serviceCIDRs = convert.Slice(o.ServiceCIDRs, func(c netip.Prefix) string { return c.Masked().String() })
	b.OnServiceCIDRsChanged(p.serviceCIDRs)
	if err := p.subscribe(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// Health returns the result of the last attempt to program the kernel. It is safe for concurrent use.
func (p *Proxy) Health() Health {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastHealth
}

// Backend returns the name of the back end, and why it was chosen.
func (p *Proxy) Backend() (name, why string) { return p.backend.name(), p.backendReason }

// Run keeps the kernel up to date with the API until ctx is done. The kernel's state stays. Run may be called again
// when the first call has returned.
func (p *Proxy) Run(ctx context.Context) error {
	if p.o.RecordFile != "" {
		if err := nft.RecordServiceRules(p.o.RecordFile, p.backend.name()); err != nil {
			return err
		}
	}
	p.refreshHost() // before a Service is filtered by it
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, run := range p.sources {
		wg.Go(func() { run(ctx.Done()) })
	}
	if p.o.Unreachable != nil {
		wg.Go(func() { p.followReachability(ctx) })
	}
	gone := make(chan struct{}, 1) // capacity 1: one event means at least one deletion
	if b, ok := p.backend.(tabled); ok {
		nft.FollowDeletions(ctx, &wg, gone, func(err error) {
			p.log.Info("The kernel does not say when another program removes the Service proxy's tables; they are checked now and then",
				"err", err, "every", p.guard)
		}, b.ownTables()...)
	}
	if err := p.backend.prepare(); err != nil {
		p.log.Error(err, "Services may not be served; the first attempt to write their rules will show it")
	}
	next, guard := time.NewTimer(fullSyncPeriod), time.NewTicker(p.guard)
	defer next.Stop()
	defer guard.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		case <-next.C:
		case <-gone:
			if p.intact() {
				continue
			}
		case <-guard.C:
			// The routes are read only while some Service is filtered by them: a router has many.
			if changed := p.o.externals.judgesByHost() && p.refreshHost(); p.intact() && !changed {
				continue
			}
		}
		if !p.complete() {
			continue
		}
		pause := p.sync()
		if p.Health().Err != nil {
			next.Reset(retryPause)
		} else {
			next.Reset(p.idleWait())
		}
		if !timers.Sleep(ctx, pause) {
			return nil
		}
	}
}

// idleWait returns how long the loop may wait while nothing changes.
func (p *Proxy) idleWait() time.Duration {
	if d, ok := p.backend.(drainer); ok && d.HasDraining() {
		return drainPeriod
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Until(p.lastFullSync.Add(fullSyncPeriod))
}

// complete reports whether the first lists of Services, EndpointSlices and nodes are complete. Rules of an incomplete
// view would interrupt working Services. Nodes' addresses are needed since no Service may take them.
func (p *Proxy) complete() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.servicesSynced && p.slicesSynced && (p.nodesSynced == nil || p.nodesSynced())
}

// sync makes the back end program the kernel. It returns how long to pause.
func (p *Proxy) sync() time.Duration {
	start := time.Now()
	p.mu.Lock()
	first, full := !p.lastHealth.Synced, p.fullSync || !p.lastFullSync.IsZero() && start.Sub(p.lastFullSync) >= fullSyncPeriod
	p.fullSync = false
	p.mu.Unlock()
	if p.o.externals.judgesByHost() {
		p.refreshHost()
	}
	err := p.backend.sync(full)
	took := time.Since(start)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.o.Report != nil && (first && err == nil || fmt.Sprint(err) != fmt.Sprint(p.lastHealth.Err)) {
		p.o.Report(err)
	}
	p.lastHealth.Err = err
	if err != nil {
		p.fullSync = p.fullSync || full
		p.log.Error(err, "Services may be out of date, trying again", "after", retryPause)
	} else {
		if first {
			p.log.Info("Services are served", "backend", p.backend.name(), "took", took)
			p.removeOthers()
			p.limitConntrack()
		}
		if first || full { // back ends have no state before their first sync
			p.lastFullSync = start
		}
		p.lastHealth = Health{Synced: true, LastDuration: took}
	}
	if first {
		return minPause // the first sync makes the tables, which takes long; changes meanwhile must not wait as long again
	}
	return min(max(minPause, pauseFactor*took), maxPause)
}

// removeOthers removes the rules of a run in another mode, once they are not used any more.
func (p *Proxy) removeOthers() {
	if p.o.RecordFile == "" {
		return
	}
	switch removed, err := nft.RemoveOtherServiceRules(p.o.RecordFile, p.backend.name()); {
	case err != nil:
		p.log.Error(err, "What the Service proxy made in another mode is still in the kernel; a restart of the node is rid of it")
	case removed != "":
		p.log.Info("Removed what the Service proxy had made in another mode", "backend", removed, "connections", connectionsAfter(removed))
	}
}

// connectionsAfter describes, for the log, what happens to connections of a back end whose rules are removed.
func connectionsAfter(removed string) string {
	if removed == ModeIPVS {
		return "most of those that began with it end; new ones are served"
	}
	return "those that began with it go on, as long as conntrack knows them; session affinity begins again"
}

// limitConntrack must be called after the rules were written, which make the kernel track connections.
func (p *Proxy) limitConntrack() {
	if p.root == "" {
		return
	}
	if err := limitConntrack(p.root, conntrackLimits(runtime.NumCPU())); err != nil {
		p.log.Info("The kernel's connection tracking keeps its own limits; Services work, but with very many connections new ones may be "+
			"dropped: raise them on the host", "err", err)
	}
}

// intact reports whether the back end's kernel state exists. If not, it requests a full sync.
func (p *Proxy) intact() bool {
	ok, err := p.backend.intact()
	if err != nil || ok {
		return true // an error here says nothing about the state
	}
	p.log.Info("What the Service proxy made in the kernel was removed or changed by another program; writing it again", "backend",
		p.backend.name())
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fullSync = true
	return false
}

func (p *Proxy) trigger() {
	p.queued()
	p.wake.Send()
}
