// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/cni"
)

// network is the pod network, the Service proxy and the cluster DNS with one identity of their own: the node's cannot
// read Services and other nodes.
type network struct {
	o       Options
	client  kubernetes.Interface
	confDir string
}

func newNetwork(o Options, confDir string) (networkRunner, error) {
	config, err := clientcmd.BuildConfigFromFlags("", o.NetworkKubeconfig)
	if err != nil {
		return nil, fmt.Errorf("agent: read the network's credentials: %w", err)
	}
	config.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("agent: make the network's client: %w", err)
	}
	return &network{o: o, client: client, confDir: confDir}, nil
}

// Run implements networkRunner.
func (n *network) Run(ctx context.Context) error {
	p := n.o.paths()
	server, err := cni.NewServer(cni.Options{
		Socket: p.cniSocket, StateDir: p.cniState, ConfDir: n.confDir,
		PodCIDRs:     cni.WatchPodCIDRs(ctx, n.client, n.o.NodeName),
		ClusterCIDRs: n.o.ClusterCIDRs, ServiceCIDRs: n.o.ServiceCIDRs,
		Logger: klog.FromContext(ctx),
	})
	if err != nil {
		return fmt.Errorf("agent: set up the pod network: %w", err)
	}
	if err := server.Run(ctx); err != nil {
		return fmt.Errorf("agent: pod network: %w", err)
	}
	return nil
}
