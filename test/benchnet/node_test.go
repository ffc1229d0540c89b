//go:build bench

// SPDX-License-Identifier: Apache-2.0

package benchnet

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/klog/v2"
	kubeproxyconfig "k8s.io/kubernetes/pkg/proxy/apis/config"
	proxymetrics "k8s.io/kubernetes/pkg/proxy/metrics"

	"github.com/coracle-k8s/coracle/cni"
	"github.com/coracle-k8s/coracle/internal/memory"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/netpolicy"
	"github.com/coracle-k8s/coracle/proxy"
)

// nodeVar holds a nodeConfig in a child process.
const nodeVar = "CORACLE_BENCHNET_NODE"

// nodeConfig says which of the agent's network parts a child process runs in its namespace.
type nodeConfig struct {
	API, Name, Dir string
	IP             netip.Addr
	Backend        string
	Pods           bool // the pod network
	Policies       bool
	Services       bool
	Metrics        string        // an address for upstream's metrics
	Sandboxes      []cni.Sandbox // that have a network since an earlier run, as far as policies know
}

var (
	clusterCIDR = netip.MustParsePrefix("10.42.0.0/16")
	serviceCIDR = netip.MustParsePrefix("10.96.0.0/12")
)

// nodeMain is a child process: the network parts of an agent, wired as agent/network.go does. What it prints is "ready"
// and its WireGuard key.
func nodeMain() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	memory.NewPacer(25, 25, 100, time.Now) // as the process has it 20 s after its start (cmd/coracle)
	if err := runNode(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		return 1
	}
	return 0
}

func runNode(ctx context.Context) error {
	var c nodeConfig
	if err := json.Unmarshal([]byte(os.Getenv(nodeVar)), &c); err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(&rest.Config{Host: c.API, ContentConfig: rest.ContentConfig{ContentType: runtime.ContentTypeProtobuf}})
	if err != nil {
		return err
	}
	informers, err := netinformers.New(netinformers.Options{Client: client, NodeName: c.Name, AllNodes: true, Services: c.Services, Policies: c.Policies})
	if err != nil {
		return err
	}
	var parts []func(context.Context) error
	var policies *netpolicy.Enforcer
	if c.Policies {
		if policies, err = netpolicy.New(netpolicy.Options{Informers: informers}); err != nil {
			return err
		}
		policies.Restore(c.Sandboxes)
		parts = append(parts, policies.Run)
	}
	key := ""
	if c.Pods {
		pods, err := newPods(ctx, c, informers, policies)
		if err != nil {
			return err
		}
		key = pods.WireGuardKey()
		parts = append(parts, pods.Run)
	}
	if c.Services {
		p, err := proxy.New(ctx, proxy.Options{
			NodeIPs: []netip.Addr{c.IP}, ClusterCIDRs: []netip.Prefix{clusterCIDR}, ServiceCIDRs: []netip.Prefix{serviceCIDR},
			Mode: proxy.ModeNFTables, Informers: informers, RecordFile: filepath.Join(c.Dir, "service-proxy"),
		})
		if err != nil {
			return err
		}
		parts = append(parts, p.Run)
	}
	if c.Metrics != "" {
		proxymetrics.RegisterMetrics(kubeproxyconfig.ProxyModeNFTables) // kube-proxy's main does so
		go func() {
			klog.ErrorS(http.ListenAndServe(c.Metrics, legacyregistry.Handler()), "Metrics are not served")
		}()
	}
	var wg sync.WaitGroup
	for _, run := range append(parts, informers.Run) {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				klog.ErrorS(err, "A part of the node ended")
			}
		})
	}
	fmt.Println("ready", key)
	wg.Wait()
	return nil
}

func newPods(ctx context.Context, c nodeConfig, informers *netinformers.Informers, policies *netpolicy.Enforcer) (*cni.Server, error) {
	cidrs, err := cni.WatchPodCIDRs(informers.Nodes(), c.Name)
	if err != nil {
		return nil, err
	}
	peers, err := cni.WatchPeers(ctx, informers.Nodes(), c.Name)
	if err != nil {
		return nil, err
	}
	state := filepath.Join(c.Dir, "cni")
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, err
	}
	o := cni.Options{
		Socket: filepath.Join(c.Dir, "cni.sock"), StateDir: state, ConfDir: filepath.Join(c.Dir, "net.d"), PodCIDRs: cidrs, Peers: peers,
		Backend: c.Backend, NodeIPs: []netip.Addr{c.IP}, ClusterCIDRs: []netip.Prefix{clusterCIDR}, ServiceCIDRs: []netip.Prefix{serviceCIDR},
		Report: func(err error) { klog.InfoS("Ways to other nodes", "time", time.Now(), "trouble", err) },
	}
	if policies != nil {
		o.Policies = policies
	}
	return cni.NewServer(o)
}
