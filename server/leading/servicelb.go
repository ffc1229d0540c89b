// SPDX-License-Identifier: Apache-2.0

package leading

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/controllers/servicelb"
	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/internal/recorder"
	"github.com/coracle-k8s/coracle/server/bootstrap"
	"github.com/coracle-k8s/coracle/server/liveness"
)

// kubeletPort is the port of every node's kubelet.
const kubeletPort = 10250

// serviceLBPart gives Services of type LoadBalancer their addresses, for a term. If it is disabled, it removes
// addresses that it gave.
func (l *Leader) serviceLBPart(ctx context.Context, t *term.Term) error {
	config := rest.AddUserAgent(rest.CopyConfig(t.Config), "servicelb")
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	o := l.o.ServiceLB
	if o.Dynamic, err = dynamic.NewForConfig(config); err != nil {
		return err
	}
	if o.Reserved, err = l.reservedPorts(); err != nil {
		return err
	}
	nodePorts, err := utilnet.ParsePortRange(l.o.NodePortRange)
	if err != nil {
		return fmt.Errorf("reading the node port range %q: %w", l.o.NodePortRange, err)
	}
	o.Client, o.Informers, o.NodePorts, o.Alive = client, t.Informers, *nodePorts, l.isAlive
	o.Logger, o.Part = l.log("load balancer"), l.o.Board.Part("load balancer")
	o.Recorder = recorder.New(ctx, client, "servicelb")
	defer notLeading(o.Part)
	c, err := servicelb.New(o)
	if err != nil {
		return err
	}
	return runPart(ctx, t, c.Run, "assigning addresses to Services")
}

// isAlive says whether this server has contact with a node: every node sends a ping each second. For a node that never
// was connected it returns true, so that only its condition is used.
func (l *Leader) isAlive(node string) bool {
	if l.o.Liveness.Own(node) {
		return true
	}
	c, ok := l.o.Liveness.Contact(node)
	return !ok || c.Open && time.Since(c.Last) < liveness.Quick
}

// reservedPorts returns the ports at nodes' addresses that no Service may have, since machines of the cluster or their
// programs use them.
func (l *Leader) reservedPorts() (map[servicelb.Port]string, error) {
	out := map[servicelb.Port]string{}
	kept, err := loadbalancer.ParsePorts(l.o.LBReserved)
	if err != nil {
		return nil, fmt.Errorf("reading --load-balancer-reserved-ports: %w", err)
	}
	for _, p := range kept {
		out[servicelb.Port{Protocol: corev1.Protocol(p.Protocol), Number: int32(p.Number)}] = "the node itself (--load-balancer-reserved-ports of the servers)"
	}
	for _, r := range []struct {
		port     int
		what     string
		protocol []corev1.Protocol
	}{
		{l.o.Port, "the API server", []corev1.Protocol{corev1.ProtocolTCP}},
		{l.o.Port, "gossip between the machines", []corev1.Protocol{corev1.ProtocolUDP}},
		{kubeletPort, "the kubelet", []corev1.Protocol{corev1.ProtocolTCP}},
		{bootstrap.DNSPort, "the cluster DNS", []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP}},
		{table.NodeHTTPPort, "the ingress", []corev1.Protocol{corev1.ProtocolTCP}},
		{table.NodeHTTPSPort, "the ingress", []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP}},
		{8472, "VXLAN between the nodes", []corev1.Protocol{corev1.ProtocolUDP}},
		{51820, "WireGuard between the nodes", []corev1.Protocol{corev1.ProtocolUDP}},
	} {
		for _, p := range r.protocol {
			out[servicelb.Port{Protocol: p, Number: int32(r.port)}] = r.what
		}
	}
	for _, port := range table.GatewayPorts() {
		out[servicelb.Port{Protocol: corev1.ProtocolTCP, Number: int32(port)}] = "the Gateways"
	}
	return out, nil
}
