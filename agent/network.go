// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/cni"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/proxy"
)

// network is the pod network and the Service proxy. They share one set of informers and an identity of their own: the
// node's cannot read Services.
type network struct {
	o         Options
	informers *proxy.Informers
	pods      *cni.Server
	services  proxy.Backend
}

func newNetwork(ctx context.Context, o Options) (networkRunner, error) {
	client, err := proxy.NewClient(o.NetworkKubeconfig)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	n := &network{o: o, informers: proxy.NewInformers(client, o.NodeName)}
	podCIDRs, err := cni.WatchPodCIDRs(n.informers.Core().V1().Nodes(), o.NodeName)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	p := o.paths()
	if n.pods, err = cni.NewServer(cni.Options{
		Socket: p.cniSocket, StateDir: p.cniState, ConfDir: p.cniConf, PodCIDRs: podCIDRs,
		ClusterCIDRs: o.ClusterCIDRs, ServiceCIDRs: o.ServiceCIDRs, Logger: klog.FromContext(ctx),
	}); err != nil {
		return nil, fmt.Errorf("agent: set up the pod network: %w", err)
	}
	if n.services, err = proxy.NewNFTables(ctx, proxy.Options{
		NodeName: o.NodeName, NodeIPs: addrs(o), ClusterCIDRs: o.ClusterCIDRs, ServiceCIDRs: o.ServiceCIDRs,
		Informers: n.informers, Logger: klog.FromContext(ctx),
	}); err != nil {
		return nil, fmt.Errorf("agent: set up the Service proxy: %w", err)
	}
	return n, nil
}

// Run implements networkRunner. The first part that fails ends the others.
func (n *network) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	run := func(name string, f func(context.Context) error) {
		part := n.o.part(name)
		part.Set(status.Running, "")
		wg.Go(func() {
			defer cancel()
			err := f(ctx)
			if err == nil || ctx.Err() != nil {
				part.Set(status.Stopped, "")
				return
			}
			part.Set(status.Failed, err.Error())
			mu.Lock()
			errs = append(errs, fmt.Errorf("agent: %s: %w", name, err))
			mu.Unlock()
		})
	}
	run("pod network", n.pods.Run)
	run("service proxy", n.services.Run)
	wg.Go(func() { _ = n.informers.Run(ctx) }) // returns nil, after ctx
	wg.Wait()
	return errors.Join(errs...)
}

func addrs(o Options) []netip.Addr {
	var out []netip.Addr
	for _, ip := range o.NodeIPs {
		if a, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, a.Unmap())
		}
	}
	return out
}
