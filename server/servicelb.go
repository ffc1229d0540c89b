// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"github.com/coracle-k8s/coracle/controllers/servicelb"
	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/server/bootstrap"
	"github.com/coracle-k8s/coracle/server/liveness"
)

// kubeletPort is where every node's kubelet listens.
const kubeletPort = 10250

// serviceLBPart gives Services of type LoadBalancer their addresses for a term. Switched off, it takes back what it
// gave.
func (s *Server) serviceLBPart(ctx context.Context, t *term.Term) error {
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(t.Config), "servicelb"))
	if err != nil {
		return err
	}
	objects, err := dynamic.NewForConfig(rest.AddUserAgent(rest.CopyConfig(t.Config), "servicelb"))
	if err != nil {
		return err
	}
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: client.CoreV1().Events("")})
	reserved, err := s.reservedPorts()
	if err != nil {
		return err
	}
	nodePorts, err := utilnet.ParsePortRange(s.o.NodePortRange)
	if err != nil {
		return fmt.Errorf("reading the node port range %q: %w", s.o.NodePortRange, err)
	}
	o := servicelb.Options{
		Client: client, Informers: t.Informers, Reserved: reserved, NodePorts: *nodePorts, Disabled: s.o.DisableServiceLB,
		Pool: s.o.LBPool, Dynamic: objects, Networks: s.o.reserved(), Barred: s.roster.Reserved, Alive: s.heardOf, Joined: s.roster.Joined,
		Recorder: events.NewRecorder(legacyscheme.Scheme, corev1.EventSource{Component: "servicelb"}),
		Logger:   s.log.With("part", "load balancer"),
	}
	if s.o.Board != nil {
		o.Part = s.o.Board.Part("load balancer")
		defer o.Part.Set(status.Waiting, "this server does not lead")
	}
	c, err := servicelb.New(o)
	if err != nil {
		return err
	}
	if !t.StartInformers(ctx) {
		return nil
	}
	if err := c.Run(ctx); err != nil {
		return err
	}
	if ctx.Err() == nil {
		return errors.New("giving Services addresses ended by itself")
	}
	return nil
}

// heardOf says whether this server hears a node: every node says something each second. One that has no connection of
// that kind is judged by its condition alone.
func (s *Server) heardOf(node string) bool {
	if s.o.OwnNode && node == s.o.NodeName {
		return true
	}
	c, ok := s.tunnels.Contact(node)
	return !ok || c.Open && time.Since(c.Last) < liveness.Quick
}

// reservedPorts are those at nodes' addresses that no Service may take: machines of the cluster talk to one another
// there, or programs of theirs listen.
func (s *Server) reservedPorts() (map[servicelb.Port]string, error) {
	out := map[servicelb.Port]string{}
	kept, err := loadbalancer.ParsePorts(s.o.LBReserved)
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
		{s.o.Port, "the API server", []corev1.Protocol{corev1.ProtocolTCP}},
		{s.o.Port, "gossip between the machines", []corev1.Protocol{corev1.ProtocolUDP}},
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
