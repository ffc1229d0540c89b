// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	coreinformers "k8s.io/client-go/informers/core/v1"

	"github.com/coracle-k8s/coracle/agent/ingress"
	"github.com/coracle-k8s/coracle/agent/lbspeaker"
	"github.com/coracle-k8s/coracle/cni"
	"github.com/coracle-k8s/coracle/dns"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/internal/resolvconf"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/supervise"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/netpolicy"
	"github.com/coracle-k8s/coracle/proxy"
)

// partPodNetwork, partServices and partSpeaker are the names of the status lines of the pod network, the Service proxy
// and the load balancer addresses.
const (
	partPodNetwork = "pod network"
	partServices   = "service proxy"
	partSpeaker    = "load balancer addresses"
	// partFirewall is the name of the status line of other programs' firewalls. It is never degraded: whether they
	// accept the required packets cannot be found out.
	partFirewall = "host firewall"
)

// network is the node's network parts: pod network, Service proxy, cluster DNS, NetworkPolicies, load balancer
// addresses and ingress. They have credentials of their own, since the node's credentials cannot read EndpointSlices.
// They share one set of informers.
type network struct {
	o         Options
	informers *netinformers.Informers
	pods      *cni.Server         // nil when another plugin makes the pod network
	backends  chan string         // the cluster's back end of the pod network; unbuffered: the sender waits
	changed   timers.Signal       // the node uses another back end now
	services  *proxy.Proxy        // nil when another proxy serves Services
	names     *dns.Server         // nil when there is no cluster DNS
	policies  *netpolicy.Enforcer // nil when another program enforces NetworkPolicies
	addresses *lbspeaker.Speaker
	ingress   *ingress.Node // nil when another program serves Ingresses
	settings  *clustersettings.StreamClient
	findings  chan findings // capacity 1: only the latest wait
}

// MissingForIPVS calls proxy.MissingForIPVS. Its error names what this kernel lacks for that proxy mode.
func MissingForIPVS(mode, scheduler string, clusterCIDRs []netip.Prefix) error {
	return proxy.MissingForIPVS(mode, scheduler, clusterCIDRs)
}

func newNetwork(ctx context.Context, o Options) (*network, error) {
	client, err := netinformers.NewClient(o.NetworkKubeconfig)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	n := &network{o: o, findings: make(chan findings, 1), backends: make(chan string), changed: timers.NewSignal()}
	if n.informers, err = netinformers.New(netinformers.Options{
		Client: client, NodeName: o.Name, AllNodes: true, Services: !o.Cluster.NoServiceProxy, Names: len(o.clusterDNS()) > 0,
		Policies: o.servesPolicies(),
	}); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	n.settings = clustersettings.NewStreamClient(clustersettings.Options{
		Client: client, Names: o.settings(), Logger: o.Logger,
	})
	p := o.paths()
	log := logr.FromSlogHandler(o.Logger.Handler()) // not klog's logger, which is for upstream's messages
	if n.policies, err = newPolicies(o, n.informers, log); err != nil {
		return nil, err
	}
	var admission cni.Policies // nil where pods wait for no policies
	if n.policies != nil {
		admission = n.policies
	}
	if n.pods, err = newPods(ctx, o, n.informers.Nodes(), n.backends, n.changed, admission, log); err != nil {
		return nil, err
	}
	if n.policies != nil {
		n.policies.Restore(n.pods.Sandboxes())
	}
	var backend string // of Services
	if o.Cluster.NoServiceProxy {
		if err := removeServiceRules(o, p.proxyRecord); err != nil {
			return nil, err
		}
	} else {
		if n.services, err = proxy.New(ctx, proxy.Options{
			NodeIPs: o.IPs, ClusterCIDRs: o.Cluster.PodCIDRs, ServiceCIDRs: o.Cluster.ServiceCIDRs, NodePortAddresses: o.NodePortAddresses,
			Mode: o.ProxyMode, IPVSScheduler: o.IPVSScheduler, Reserved: o.reserved(), ResolvConf: o.ResolvConf, Report: n.reportServices,
			Informers: n.informers, Unreachable: o.unreachable(), RecordFile: p.proxyRecord, Logger: log,
		}); err != nil {
			return nil, fmt.Errorf("agent: set up the Service proxy: %w", err)
		}
		backend, _ = n.services.Backend()
	}
	report := func(used loadbalancer.Conflicts, proven loadbalancer.Proven) {
		timers.Replace(n.findings, findings{conflicts: used.String(), proven: proven.String()})
	}
	if n.addresses, err = lbspeaker.New(o.speaker(client, n.settings, backend, report)); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	if len(o.clusterDNS()) > 0 {
		if n.names, err = dns.NewServer(dns.Options{
			Addresses: o.IPs, Informers: n.informers, Client: client, Settings: n.settings, Domain: o.Cluster.Domain,
			ClusterDNS: o.clusterDNS(), Board: o.Board,
			Clients: slices.Concat(o.Cluster.PodCIDRs, o.Cluster.ServiceCIDRs), ResolvConf: o.ResolvConf, ImportDir: existing(p.dnsImports),
			Logger: log,
		}); err != nil {
			return nil, fmt.Errorf("agent: set up the cluster DNS: %w", err)
		}
	}
	if n.ingress, err = newIngress(o, n.informers); err != nil {
		return nil, err
	}
	return n, nil
}

// newPods prepares the pod network. It returns nil where another plugin makes the pod network: containerd then waits
// for that plugin's configuration. It removes then what our pod network has left.
func newPods(ctx context.Context, o Options, nodes coreinformers.NodeInformer, backends <-chan string, changed timers.Signal,
	policies cni.Policies, log logr.Logger) (*cni.Server, error) {
	p := o.paths()
	if o.Cluster.NetworkBackend == clusterconfig.NetworkNone {
		if err := cni.Cleanup(cni.CleanupOptions{StateDir: p.cniState, ConfDir: p.cniConf}); err != nil {
			return nil, fmt.Errorf("agent: leave the pod network to another plugin: %w", err)
		}
		return nil, nil
	}
	podCIDRs, err := cni.WatchPodCIDRs(nodes, o.Name)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	peers, err := cni.WatchPeers(ctx, nodes, o.Name)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	part := o.statusPart(partPodNetwork)
	pods, err := cni.NewServer(cni.Options{
		Socket: p.CNISocket, StateDir: p.cniState, ConfDir: p.cniConf, PodCIDRs: podCIDRs, Peers: peers,
		Backend: o.Cluster.NetworkBackend, Backends: backends, NodeIPs: o.IPs, Interface: o.NetworkInterface, External: o.networkExternal(),
		ClusterCIDRs: o.Cluster.PodCIDRs, ServiceCIDRs: o.Cluster.ServiceCIDRs, ReservedPorts: o.reservedHostPorts(),
		Port: o.Port, Policies: policies,
		Logger:  log,
		Changed: changed.Send,
		Report: func(err error) {
			if err != nil {
				part.Set(status.Degraded, err.Error())
			} else {
				part.Set(status.Running, "")
			}
		},
		Firewalls: func(found string) { // this line does not exist where no firewall was found
			text := "there is no longer a firewall that drops packets by default"
			if found != "" {
				text = found + "; its rules are not read: `coracle check` lists the packets that it has to accept"
			}
			o.statusPart(partFirewall).Set(status.Running, text)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("agent: set up the pod network: %w", err)
	}
	return pods, nil
}

const (
	usualPort   = 6443  // the port of machines without another configured port
	kubeletPort = 10250 // the usual port of kubelets
)

// reserved returns the addresses and ports that no Service may take: the ports of nodes, of their kubelets, of the
// cluster DNS, of a server's console, and the last known port of the tunnels.
func (o Options) reserved() proxy.Reserved {
	backend := o.Cluster.NetworkBackend
	if backend != clusterconfig.NetworkNone {
		backend = cmp.Or(cni.KnownBackend(o.paths().cniState), backend)
	}
	own := []uint16{uint16(o.Port), usualPort, kubeletPort, dns.Port, table.NodeHTTPPort, table.NodeHTTPSPort}
	ports := slices.Concat(own, table.GatewayPorts(), o.kubeletPorts)
	if o.ConsolePort != 0 {
		ports = append(ports, o.ConsolePort)
	}
	return proxy.Reserved{Addresses: o.Cluster.VIPs, Tunnel: uint16(clusterconfig.TunnelPort(backend)), Ports: ports}
}

// reservedHostPorts returns the ports that no pod may have as a host port: those that no Service may take, and those on
// which this process listens at loopback alone.
func (o Options) reservedHostPorts() []uint16 {
	ports := o.reserved().Ports
	if o.LocalPort != 0 {
		ports = append(ports, uint16(o.LocalPort))
	}
	return ports
}

// podCIDRs returns the networks of the node's pods. It returns none before they are known.
func (n *network) podCIDRs() []netip.Prefix {
	node, err := n.informers.Nodes().Lister().Get(n.o.Name)
	if err != nil {
		return nil
	}
	return clusterconfig.PodCIDRs(node)
}

// removeServiceRules removes the rules that an earlier run's Service proxy has left in the kernel: two proxies that
// both translate a Service's address would not agree on a connection's destination.
func removeServiceRules(o Options, record string) error {
	backend, err := nft.RemoveServiceRules(record)
	if err != nil {
		return fmt.Errorf("agent: leave Services to another proxy: %w", err)
	}
	if backend != "" {
		o.Logger.Info("agent: Services are left to another proxy; removed coracle's rules for them", "backend", backend)
	}
	return nil
}

// startIngress starts the ingress in g. It needs no server to keep a proxy running.
func (n *network) startIngress(g *supervise.Group) {
	if n.ingress == nil {
		n.o.statusPart(partIngress).Set(status.Disabled, "")
		return
	}
	g.Run(partIngress, func(ctx context.Context) error {
		if err := n.ingress.Run(ctx); err != nil {
			return fmt.Errorf("agent: %s: %w", partIngress, err)
		}
		return nil
	})
}

// start starts the other parts in g.
func (n *network) start(g *supervise.Group) {
	run := func(name string, f func(context.Context) error) {
		g.Run(name, func(ctx context.Context) error {
			if err := f(ctx); err != nil {
				return fmt.Errorf("agent: %s: %w", name, err)
			}
			return nil
		})
	}
	if n.pods != nil {
		run(partPodNetwork, n.pods.Run)
		g.Quiet("key and back end of the node", func(ctx context.Context) error {
			return publishKeyAndBackend(ctx, n.o, n.pods, n.changed)
		})
		g.Go(func(ctx context.Context) {
			clustersettings.Key(ctx, n.settings, clusterconfig.BackendConfigMap, clusterconfig.BackendData, func(backend string) {
				if n.services != nil && slices.Contains(clusterconfig.RunningBackends(), backend) {
					n.services.ReserveTunnel(clusterconfig.TunnelPort(backend))
				}
				select {
				case n.backends <- backend:
				case <-ctx.Done():
				}
			})
		})
	} else {
		n.o.statusPart(partPodNetwork).Set(status.Disabled, "left to another plugin")
	}
	if n.policies != nil {
		run(partPolicies, n.policies.Run)
	} else {
		n.o.statusPart(partPolicies).Set(status.Disabled, "")
	}
	if n.services != nil {
		run(partServices, func(ctx context.Context) error {
			if n.services.Health().Synced { // it is started again
				n.reportServices(nil)
			} else {
				n.o.statusPart(partServices).Set(status.Starting, "its first rules are not written yet")
			}
			return n.services.Run(ctx)
		})
		g.Go(func(ctx context.Context) { followVIPs(ctx, n.settings, n.services.Reserve) })
	} else {
		n.o.statusPart(partServices).Set(status.Disabled, "left to another proxy")
	}
	if n.names != nil {
		run("cluster dns", n.names.Run)
		g.Quiet("search list", func(ctx context.Context) error { return watchSearchList(ctx, n.o, resolvconf.Wildcards) })
	} else {
		n.o.statusPart("cluster dns").Set(status.Disabled, "")
	}
	run(partSpeaker, n.addresses.Run)
	g.Quiet("findings of the load balancer", func(ctx context.Context) error { return publishFindings(ctx, n.o, n.findings) })
	if n.o.Reach != nil {
		g.Go(func(ctx context.Context) { n.o.Reach.Run(ctx, n.internalIPs) })
	}
	g.Go(n.settings.Run)
	g.Quiet("caches", n.informers.Run)
}

// reportServices reports which back end serves Services and why. With an error it reports the error.
func (n *network) reportServices(err error) {
	backend, why := n.services.Backend()
	if err != nil {
		n.o.statusPart(partServices).Set(status.Degraded, fmt.Sprintf("%s: %v", backend, err))
		return
	}
	n.o.statusPart(partServices).Set(status.Running, backend+": "+why)
}

// settings returns the names of the ConfigMaps that this node's parts follow.
func (o Options) settings() []string {
	names := []string{loadbalancer.ConfigMap}
	if o.Cluster.NetworkBackend != clusterconfig.NetworkNone {
		names = append(names, clusterconfig.BackendConfigMap)
	}
	if !o.Cluster.NoServiceProxy {
		names = append(names, clusterconfig.VIPConfigMap)
	}
	if len(o.clusterDNS()) > 0 {
		names = append(names, clustersettings.DNS)
	}
	return names
}

// unreachable returns what tells the Service proxy which nodes cannot be reached. It returns nil where no probe runs.
func (o Options) unreachable() proxy.Unreachable {
	if o.Reach == nil {
		return nil
	}
	return o.Reach
}

// internalIPs returns the internal addresses of a node, as the API has them.
func (n *network) internalIPs(node string) []netip.Addr {
	o, err := n.informers.Nodes().Lister().Get(node)
	if err != nil {
		return nil
	}
	return clusterconfig.NodeAddresses(o, corev1.NodeInternalIP)
}

// existing returns dir, or "" where there is no such folder: CoreDNS would warn about it.
func existing(dir string) string {
	if _, err := os.Stat(dir); err != nil {
		return ""
	}
	return dir
}
