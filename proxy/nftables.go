// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	upstream "k8s.io/kubernetes/pkg/proxy"
	kubeproxyconfig "k8s.io/kubernetes/pkg/proxy/apis/config"
	"k8s.io/kubernetes/pkg/proxy/config"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"
	"k8s.io/kubernetes/pkg/proxy/nftables"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"

	"github.com/coracle-k8s/coracle/internal/nfttable"
)

// Options are what a back end needs. NodeName, NodeIPs, ClusterCIDRs, ServiceCIDRs and Informers are required.
type Options struct {
	NodeName string
	// NodeIPs are the node's addresses, at most one per family.
	NodeIPs []netip.Addr
	// ClusterCIDRs hold all pods: traffic from elsewhere to a Service is masqueraded. Their families are the ones served.
	ClusterCIDRs []netip.Prefix
	// ServiceCIDRs are those the cluster starts with; the API's ServiceCIDR objects add to them.
	ServiceCIDRs []netip.Prefix
	// NodePortAddresses are CIDRs of the local addresses that answer on node ports; empty means NodeIPs. As in upstream's
	// nftables mode, 127.0.0.1 does not answer.
	NodePortAddresses []string
	// Informers are the node's shared caches, which somebody else runs once the back end is made.
	Informers *Informers
	// Logger is klog's own when left zero.
	Logger klog.Logger
}

// Intervals of the nftables back end.
const (
	// minPause and maxPause bound the rest after a sync, which is pauseFactor times as long as the sync took: an endpoint's
	// change reaches the kernel at once, and a storm of them costs a tenth of a core at most.
	minPause    = 50 * time.Millisecond
	maxPause    = time.Second
	pauseFactor = 9
	// retryPause follows a failed sync.
	retryPause = 5 * time.Second
	// fullSyncPeriod rewrites everything, as upstream does.
	fullSyncPeriod = time.Hour
	// guardPeriod is how often to look whether somebody removed the tables, as a restart of a host firewall does.
	guardPeriod = 30 * time.Second
	// masqueradeBit is upstream's default mark bit for packets to masquerade.
	masqueradeBit = 14
)

// NFTables drives upstream's nftables proxier.
//
// Upstream's own loop cannot be stopped, so it is not started: this type sits between the informers and the proxier,
// and runs the proxier's synchronous entry itself.
type NFTables struct {
	o        Options
	log      klog.Logger
	proxier  upstream.Provider
	health   *healthcheck.ProxyHealthServer // never serves; it tells whether a sync succeeded
	families []corev1.IPFamily
	guard    time.Duration
	sources  []func(stop <-chan struct{}) // each says when its first list is complete
	wake     chan struct{}                // one pending wake-up stands for any number of changes

	mu             sync.Mutex
	servicesSynced bool
	slicesSynced   bool
	topology       map[string]string
	serviceCIDRs   []string
	last           Health
}

var _ Backend = (*NFTables)(nil)

// NewNFTables makes the back end. It runs `nft`, found on PATH, to see whether kernel and program will do.
func NewNFTables(ctx context.Context, o Options) (*NFTables, error) {
	if o.NodeName == "" || len(o.NodeIPs) == 0 || len(o.ClusterCIDRs) == 0 || o.Informers == nil {
		return nil, errors.New("proxy: NodeName, NodeIPs, ClusterCIDRs and Informers are required")
	}
	if o.Informers.started.Load() {
		return nil, errors.New("proxy: the informers run already: make the back end first")
	}
	if o.Logger.GetSink() == nil {
		o.Logger = klog.Background()
	}
	n := &NFTables{o: o, log: o.Logger.WithName("proxy"), guard: guardPeriod, wake: make(chan struct{}, 1)}
	ctx = klog.NewContext(ctx, n.log)
	n.health = healthcheck.NewProxyHealthServer("", retryPause+maxPause, nil)
	conf := n.config()
	detectors := map[corev1.IPFamily]proxyutil.LocalTrafficDetector{}
	for _, c := range o.ClusterCIDRs {
		f := familyOf(c.Addr())
		detectors[f] = proxyutil.NewDetectLocalByCIDR(c.Masked().String())
		n.families = append(n.families, f)
	}
	nodeIPs := map[corev1.IPFamily]net.IP{}
	for _, ip := range o.NodeIPs {
		nodeIPs[familyOf(ip)] = ip.AsSlice()
	}
	var err error
	if len(n.families) == 2 {
		n.proxier, err = nftables.NewDualStackProxier(ctx, conf, detectors, o.NodeName, nodeIPs, nil, n.health, false)
	} else {
		f := n.families[0]
		n.proxier, err = nftables.NewProxier(ctx, conf, f, detectors[f], o.NodeName, nodeIPs[f], nil, n.health, false)
	}
	if err != nil {
		return nil, fmt.Errorf("preparing the nftables proxier: %w", err)
	}
	for _, c := range o.ServiceCIDRs {
		n.serviceCIDRs = append(n.serviceCIDRs, c.Masked().String())
	}
	n.proxier.OnServiceCIDRsChanged(n.serviceCIDRs)
	n.subscribe(ctx)
	return n, nil
}

// subscribe ties the informers to the proxier. Upstream's configs lose events between their making and the registration
// of a handler, so the informers must not run yet.
func (n *NFTables) subscribe(ctx context.Context) {
	h := handler{n}
	services := config.NewServiceConfig(ctx, n.o.Informers.Core().V1().Services(), 0)
	services.RegisterEventHandler(h)
	slices := config.NewEndpointSliceConfig(ctx, n.o.Informers.Discovery().V1().EndpointSlices(), 0)
	slices.RegisterEventHandler(h)
	cidrs := config.NewServiceCIDRConfig(ctx, n.o.Informers.Networking().V1().ServiceCIDRs(), 0)
	cidrs.RegisterEventHandler(h)
	topology := config.NewNodeTopologyConfig(ctx, n.o.Informers.Core().V1().Nodes(), 0)
	topology.RegisterEventHandler(h)
	n.sources = []func(stop <-chan struct{}){services.Run, slices.Run, cidrs.Run}
}

func familyOf(a netip.Addr) corev1.IPFamily {
	if a.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

func (n *NFTables) config() *kubeproxyconfig.KubeProxyConfiguration {
	conf := &kubeproxyconfig.KubeProxyConfiguration{
		Mode:              kubeproxyconfig.ProxyModeNFTables,
		NodePortAddresses: n.o.NodePortAddresses,
		SyncPeriod:        metav1.Duration{Duration: retryPause}, // of upstream's loop, which does not run
		MinSyncPeriod:     metav1.Duration{Duration: minPause},
	}
	bit := int32(masqueradeBit)
	conf.NFTables.MasqueradeBit = &bit
	if len(conf.NodePortAddresses) == 0 {
		for _, ip := range n.o.NodeIPs {
			conf.NodePortAddresses = append(conf.NodePortAddresses, netip.PrefixFrom(ip, ip.BitLen()).String())
		}
	}
	return conf
}

// Name implements Backend.
func (n *NFTables) Name() string { return "nftables" }

// Health implements Backend.
func (n *NFTables) Health() Health {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.last
}

// Run implements Backend. Call it once.
func (n *NFTables) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, run := range n.sources {
		wg.Go(func() { run(ctx.Done()) })
	}
	if err := n.ensureTables(); err != nil {
		n.log.Error(err, "Services may not be served; the first attempt to write their rules will tell")
	}
	next, guard := time.NewTimer(fullSyncPeriod), time.NewTicker(n.guard)
	defer next.Stop()
	defer guard.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.wake:
		case <-next.C:
		case <-guard.C:
			if n.intact() {
				continue
			}
		}
		if !n.complete() {
			continue
		}
		pause := n.sync()
		if n.Health().Err != nil {
			next.Reset(retryPause)
		} else {
			next.Reset(fullSyncPeriod)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// complete says whether Services and EndpointSlices have been seen whole: rules of half a view would cut what works.
func (n *NFTables) complete() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.servicesSynced && n.slicesSynced
}

// sync programs the kernel and returns how long to rest.
func (n *NFTables) sync() time.Duration {
	before := n.health.Health()
	first := !n.Health().Synced
	start := time.Now()
	if first {
		n.proxier.OnServiceSynced() // no more than a flag until the slices' turn
	}
	// "Sync unconditionally", says upstream of this call; it is the one that returns when the work is done.
	n.proxier.OnEndpointSlicesSynced()
	took := time.Since(start)
	after := n.health.Health()
	var err error
	for _, f := range n.families {
		if !after.Status[f].LastUpdated.After(before.Status[f].LastUpdated) {
			err = errors.Join(err, fmt.Errorf("writing the %s rules failed; the old ones stay in force, see the log", f))
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.last.Err = err
	if err != nil {
		n.log.Error(err, "Services may be out of date, trying again", "after", retryPause)
	} else {
		if first {
			n.log.Info("Services are served", "backend", n.Name(), "took", took)
		}
		n.last = Health{Synced: true, LastSync: start.Add(took), LastDuration: took}
	}
	if first {
		return minPause // the first sync makes the tables; what it had no time to see must not wait for that
	}
	return min(max(minPause, pauseFactor*took), maxPause)
}

func (n *NFTables) tables() []nfttable.Table {
	var out []nfttable.Table
	for _, f := range n.families {
		t := nfttable.Table{Family: nfttable.IPv4, Name: "kube-proxy"}
		if f == corev1.IPv6Protocol {
			t.Family = nfttable.IPv6
		}
		out = append(out, t)
	}
	return out
}

// ensureTables makes empty tables: the proxier's first listing reports missing ones as an error.
func (n *NFTables) ensureTables() error {
	for _, t := range n.tables() {
		if err := nfttable.Ensure(t); err != nil {
			return err
		}
	}
	return nil
}

// intact looks whether the tables are there, and asks the proxier for a full sync when they are not.
func (n *NFTables) intact() bool {
	for _, t := range n.tables() {
		if ok, err := nfttable.Exists(t); err != nil || ok {
			continue // an error here says nothing about the table
		}
		n.log.Info("The nftables table of Services was removed by another program; writing it again")
		n.mu.Lock()
		topology := n.topology
		n.mu.Unlock()
		n.proxier.OnTopologyChange(topology)
		return false
	}
	return true
}

func (n *NFTables) trigger() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// Cleanup removes upstream's tables from this host.
func Cleanup(ctx context.Context) error {
	if nftables.CleanupLeftovers(ctx) {
		return errors.New("removing the nftables tables kube-proxy failed: see the log; " +
			"`nft delete table ip kube-proxy` and `nft delete table ip6 kube-proxy` do it by hand")
	}
	return nil
}

// equalSets compares without regard to order.
func equalSets(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}
