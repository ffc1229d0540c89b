// SPDX-License-Identifier: Apache-2.0

// Package proxy is the node's Service data plane: it makes the kernel send packets for Service addresses to endpoints.
//
// The front, Proxy, hears the API's events, decides when the kernel is written, and tells how that went; a back end
// writes one kind of kernel state. New chooses the back end. The package owns that state: for nftables, upstream's
// tables `kube-proxy` of families ip and ip6. It stays when a Proxy stops, so that a restart of the agent interrupts no
// Service. The package never touches the pod network or other tables (package cni), and never writes to the API.
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

	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// Options are what a Proxy needs. NodeIPs, ClusterCIDRs and Informers are required.
type Options struct {
	// NodeIPs are the node's addresses, at most one per family.
	NodeIPs []netip.Addr
	// ClusterCIDRs hold all pods: traffic from elsewhere to a Service is masqueraded. Their families are the ones
	// served.
	ClusterCIDRs []netip.Prefix
	// ServiceCIDRs are those the cluster starts with; the API's ServiceCIDR objects add to them.
	ServiceCIDRs []netip.Prefix
	// NodePortAddresses are CIDRs of the local addresses that answer on node ports; empty means NodeIPs. As in
	// upstream's nftables mode, 127.0.0.1 does not answer.
	NodePortAddresses []string
	// Mode chooses the back end: ModeAuto, which is what empty means, ModeIPVS or ModeNFTables.
	Mode string
	// IPVSScheduler is for Services that name none, where the back end is IPVS; empty is round robin.
	IPVSScheduler string
	// Reserved are what no Service may take.
	Reserved Reserved
	// ResolvConf is the file of resolvers that pods inherit, beside the host's own; it may be empty.
	ResolvConf string
	// Informers are the node's shared caches, with Services, which the caller runs once the Proxy is made.
	Informers *netinformers.Informers
	// Unreachable, when set, names the nodes to whose endpoints nothing is sent from here as long as others remain.
	Unreachable Unreachable
	// Report, when set, is called after each attempt to write the kernel's rules that ended otherwise than the one
	// before, with its error.
	Report func(error)
	// RecordFile names the back end whose state may be in this host's kernel, for nft.RemoveServiceRules. It belongs
	// on a file system that a reboot empties, as it empties the kernel. Without it nothing is recorded.
	RecordFile string
	// Logger is klog's own when left zero.
	Logger klog.Logger

	externals *externals // made by New
}

// The front's intervals. A back end says in Health how long it takes; nothing here depends on which one it is.
const (
	// minPause and maxPause bound the rest after a sync, which is pauseFactor times as long as the sync took: an
	// endpoint's change reaches the kernel at once, and a storm of them costs a tenth of a core at most.
	minPause    = 50 * time.Millisecond
	maxPause    = time.Second
	pauseFactor = 9
	// retryPause follows a failed sync.
	retryPause = 5 * time.Second
	// fullSyncPeriod rewrites everything, as upstream does.
	fullSyncPeriod = time.Hour
	// drainPeriod is how often to look whether an endpoint that is on its way out has lost its last connection.
	drainPeriod = 10 * time.Second
	// guardPeriod is how often to poll whether another program removed what the back end made, as a restart of a host
	// firewall does.
	guardPeriod = 30 * time.Second
)

// Health is a Proxy's state for people and for readiness checks.
type Health struct {
	// Synced says that the kernel has the rules of some complete view of the API.
	Synced bool
	// LastDuration is how long it took to write rules last.
	LastDuration time.Duration
	// Err is why the last attempt failed, nil when it did not.
	Err error
}

// Proxy is the front. Make one with New.
type Proxy struct {
	o         Options
	log       klog.Logger
	backend   backend
	why       string
	reachable *reachabilityFilter          // EndpointSlices reach the back end through it
	guard     time.Duration                // guardPeriod, but for tests
	root      string                       // of the files with the kernel's limits; empty in tests of the front alone
	sources   []func(stop <-chan struct{}) // each says when its first list is complete
	wake      timers.Signal

	nodesSynced func() bool // the addresses are known that no Service may have

	mu             sync.Mutex
	servicesSynced bool
	slicesSynced   bool
	full           bool      // the next sync rewrites everything
	rewritten      time.Time // when the last sync began that did, zero when none has
	zone           string
	serviceCIDRs   []string
	last           Health
}

// New chooses a back end, with a line in the log that says which and why, and ties it to the informers. Nothing in the
// kernel changes yet.
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
	p := &Proxy{why: why, o: o, log: klog.FromContext(ctx), backend: b, reachable: newReachabilityFilter(b), guard: guardPeriod, root: "/",
		wake: timers.NewSignal()}
	for _, c := range o.ServiceCIDRs {
		p.serviceCIDRs = append(p.serviceCIDRs, c.Masked().String())
	}
	b.OnServiceCIDRsChanged(p.serviceCIDRs)
	if err := p.subscribe(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// Health says how the last attempts to program the kernel went. It is safe at any time.
func (p *Proxy) Health() Health {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

// Backend names the back end, and says why it is that one.
func (p *Proxy) Backend() (name, why string) { return p.backend.name(), p.why }

// Run keeps the kernel in step with the API until ctx is done. Kernel state stays. A second call may follow when the
// first has returned.
func (p *Proxy) Run(ctx context.Context) error {
	if p.o.RecordFile != "" {
		if err := nft.RecordServiceRules(p.o.RecordFile, p.backend.name()); err != nil {
			return err
		}
	}
	p.refreshHost() // before a Service is judged by it
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, run := range p.sources {
		wg.Go(func() { run(ctx.Done()) })
	}
	if p.o.Unreachable != nil {
		wg.Go(func() { p.followReachability(ctx) })
	}
	gone := make(chan struct{}, 1) // one wake-up stands for any number
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
			// The routes are read for those Services alone that are judged by them: a router has many.
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
			next.Reset(p.rest())
		}
		if !timers.Sleep(ctx, pause) {
			return nil
		}
	}
}

// rest is how long nothing has to happen where nothing changes.
func (p *Proxy) rest() time.Duration {
	if d, ok := p.backend.(drainer); ok && d.HasDraining() {
		return drainPeriod
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Until(p.rewritten.Add(fullSyncPeriod))
}

// complete says whether Services and EndpointSlices have been seen whole: rules of half a view would cut what works. So
// has whose addresses no Service may take.
func (p *Proxy) complete() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.servicesSynced && p.slicesSynced && (p.nodesSynced == nil || p.nodesSynced())
}

// sync has the back end program the kernel and returns how long to rest.
func (p *Proxy) sync() time.Duration {
	start := time.Now()
	p.mu.Lock()
	first, full := !p.last.Synced, p.full || !p.rewritten.IsZero() && start.Sub(p.rewritten) >= fullSyncPeriod
	p.full = false
	p.mu.Unlock()
	if p.o.externals.judgesByHost() {
		p.refreshHost()
	}
	err := p.backend.sync(full)
	took := time.Since(start)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.o.Report != nil && fmt.Sprint(err) != fmt.Sprint(p.last.Err) {
		p.o.Report(err)
	}
	p.last.Err = err
	if err != nil {
		p.full = p.full || full
		p.log.Error(err, "Services may be out of date, trying again", "after", retryPause)
	} else {
		if first {
			p.log.Info("Services are served", "backend", p.backend.name(), "took", took)
			p.removeOthers()
			p.limitConntrack()
		}
		if first || full { // back ends know nothing before their first one
			p.rewritten = start
		}
		p.last = Health{Synced: true, LastDuration: took}
	}
	if first {
		return minPause // the first sync makes the tables; what it had no time to see must not wait for that
	}
	return min(max(minPause, pauseFactor*took), maxPause)
}

// removeOthers takes away what a run in another mode left, once nothing goes by it any more.
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

// connectionsAfter says what becomes of connections that began with a back end whose rules are removed.
func connectionsAfter(removed string) string {
	if removed == ModeIPVS {
		return "most of those that began with it end; new ones are served"
	}
	return "those that began with it go on, as long as conntrack knows them; session affinity begins again"
}

// limitConntrack comes after the rules, which have the kernel track connections.
func (p *Proxy) limitConntrack() {
	if p.root == "" {
		return
	}
	if err := limitConntrack(p.root, conntrackLimits(runtime.NumCPU())); err != nil {
		p.log.Info("The kernel's connection tracking keeps its own limits; Services work, but with very many connections new ones may be "+
			"dropped: raise them on the host", "err", err)
	}
}

// intact looks whether the back end's kernel state is there, and asks for a full sync when it is not.
func (p *Proxy) intact() bool {
	ok, err := p.backend.intact()
	if err != nil || ok {
		return true // an error here says nothing about the state
	}
	p.log.Info("What the Service proxy made in the kernel was removed or changed by another program; writing it again", "backend",
		p.backend.name())
	p.mu.Lock()
	defer p.mu.Unlock()
	p.full = true
	return false
}

func (p *Proxy) trigger() {
	p.queued()
	p.wake.Send()
}
