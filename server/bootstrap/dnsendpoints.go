// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// endpointsManager marks the endpoint slices that only this controller writes.
const endpointsManager = "dns.coracle"

// retryAfter is the pause after a failed round.
const retryAfter = 5 * time.Second

// DNSEndpoints maintains one EndpointSlice for each node, with the address of the node's DNS.
//
// It reads nodes and endpoint slices. Only it writes endpoint slices with its label. There is one slice for each node,
// and not one for all: when a node appears or disappears, the other nodes' watches get only that one small object. The
// endpoint is always ready: a node's pods are sent only to their own node, and a client that can send a query is on a
// running node.
type DNSEndpoints struct {
	client     kubernetes.Interface
	clusterDNS net.IP
	nodes      informers.SharedInformerFactory
	log        *slog.Logger
	changed    timers.Signal
}

// NewDNSEndpoints returns the controller. It registers with the factory, which the caller starts. With a nil clusterDNS
// the controller removes the slices of an earlier one.
func NewDNSEndpoints(client kubernetes.Interface, factory informers.SharedInformerFactory, clusterDNS net.IP,
	log *slog.Logger) *DNSEndpoints {
	d := &DNSEndpoints{client: client, clusterDNS: clusterDNS, nodes: factory, log: log, changed: timers.NewSignal()}
	factory.Core().V1().Nodes().Informer()
	factory.Discovery().V1().EndpointSlices().Informer()
	return d
}

// Run maintains the slices until ctx is done.
func (d *DNSEndpoints) Run(ctx context.Context) error {
	synced, err := netinformers.Follow(func(any) { d.changed.Send() }, netinformers.Source{
		Informer: d.nodes.Core().V1().Nodes().Informer(),
		Matters:  func(old, now any) bool { return nodeKey(old, d.clusterDNS) != nodeKey(now, d.clusterDNS) },
	}, netinformers.Source{
		Informer: d.nodes.Discovery().V1().EndpointSlices().Informer(),
		Matters:  func(old, now any) bool { return sliceKey(old) != sliceKey(now) },
	})
	if err != nil || !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return err
	}
	d.changed.Rounds(ctx, 0, func() time.Duration {
		if err := d.reconcile(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("the endpoints of the cluster's DNS could not be updated; retrying", "error", err)
			return retryAfter
		}
		return 0
	})
	return nil
}

// nodeKey returns what the endpoints depend on; most updates of a node do not change it. It is empty for no node.
func nodeKey(obj any, clusterDNS net.IP) string {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return ""
	}
	return string(n.UID) + " " + dnsAddress(n, clusterDNS)
}

func sliceKey(obj any) string {
	s, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok || s.Namespace != metav1.NamespaceSystem || s.Labels[discoveryv1.LabelManagedBy] != endpointsManager {
		return ""
	}
	return s.Name + " " + s.ResourceVersion
}

// reconcile compares every node with its slice and writes the differences.
func (d *DNSEndpoints) reconcile(ctx context.Context) error {
	nodes, err := d.nodes.Core().V1().Nodes().Lister().List(labels.Everything())
	if err != nil {
		return fmt.Errorf("listing nodes: %w", err)
	}
	managed := labels.SelectorFromSet(labels.Set{discoveryv1.LabelManagedBy: endpointsManager})
	existing, err := d.nodes.Discovery().V1().EndpointSlices().Lister().EndpointSlices(metav1.NamespaceSystem).List(managed)
	if err != nil {
		return fmt.Errorf("listing endpoint slices: %w", err)
	}
	have := map[string]*discoveryv1.EndpointSlice{}
	for _, s := range existing {
		have[s.Name] = s
	}
	var errs []error
	for _, n := range nodes {
		if want := desiredSlice(n, d.clusterDNS); want != nil {
			errs = append(errs, d.writeSlice(ctx, have[want.Name], want))
			delete(have, want.Name)
		}
	}
	for _, s := range have {
		errs = append(errs, d.remove(ctx, s))
	}
	return errors.Join(errs...)
}

func (d *DNSEndpoints) writeSlice(ctx context.Context, have, want *discoveryv1.EndpointSlice) error {
	api := d.client.DiscoveryV1().EndpointSlices(want.Namespace)
	switch {
	case have == nil:
		_, err := api.Create(ctx, want, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) && d.hasMade(ctx, want) {
			return nil // the informer has not delivered it yet; its event begins the next round
		}
		return sliceError("creating", want, err)
	case have.AddressType != want.AddressType: // immutable; the deletion begins the next round, which creates it
		return d.remove(ctx, have)
	case sameSlice(have, want):
		return nil
	}
	next := have.DeepCopy()
	next.Labels, next.OwnerReferences, next.Endpoints, next.Ports = want.Labels, want.OwnerReferences, want.Endpoints, want.Ports
	_, err := api.Update(ctx, next, metav1.UpdateOptions{})
	return sliceError("updating", want, err)
}

// hasMade says whether this controller has already made a slice of that name.
func (d *DNSEndpoints) hasMade(ctx context.Context, s *discoveryv1.EndpointSlice) bool {
	is, err := d.client.DiscoveryV1().EndpointSlices(s.Namespace).Get(ctx, s.Name, metav1.GetOptions{})
	return err == nil && is.Labels[discoveryv1.LabelManagedBy] == endpointsManager
}

func (d *DNSEndpoints) remove(ctx context.Context, s *discoveryv1.EndpointSlice) error {
	err := d.client.DiscoveryV1().EndpointSlices(s.Namespace).Delete(ctx, s.Name,
		metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(s.UID))})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return sliceError("deleting", s, err)
}

func sliceError(doing string, s *discoveryv1.EndpointSlice, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s the endpoint slice %s/%s: %w", doing, s.Namespace, s.Name, err)
}

func sameSlice(a, b *discoveryv1.EndpointSlice) bool {
	return equality.Semantic.DeepEqual(a.Labels, b.Labels) && equality.Semantic.DeepEqual(a.OwnerReferences, b.OwnerReferences) &&
		equality.Semantic.DeepEqual(a.Endpoints, b.Endpoints) && equality.Semantic.DeepEqual(a.Ports, b.Ports)
}

// desiredSlice returns a node's slice, or nil while the node has no address of the Service's family.
func desiredSlice(n *corev1.Node, clusterDNS net.IP) *discoveryv1.EndpointSlice {
	ip := dnsAddress(n, clusterDNS)
	if ip == "" {
		return nil
	}
	family := discoveryv1.AddressTypeIPv4
	if clusterDNS.To4() == nil {
		family = discoveryv1.AddressTypeIPv6
	}
	port := func(name string, p corev1.Protocol) discoveryv1.EndpointPort {
		return discoveryv1.EndpointPort{Name: &name, Protocol: &p, Port: ptr.To[int32](DNSPort)}
	}
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceSystem,
			Name:      dnsName + "-" + n.Name,
			Labels: map[string]string{
				discoveryv1.LabelServiceName: dnsName,
				discoveryv1.LabelManagedBy:   endpointsManager,
			},
			// The slice is deleted with its node, even if no server leads at that moment.
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}},
		},
		AddressType: family,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses:  []string{ip},
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
			NodeName:   ptr.To(n.Name),
		}},
		Ports: []discoveryv1.EndpointPort{port("dns", corev1.ProtocolUDP), port("dns-tcp", corev1.ProtocolTCP)},
	}
}

// dnsAddress returns the node's internal address in the family of the DNS Service. It is empty when there is none or
// DNS is disabled.
func dnsAddress(n *corev1.Node, clusterDNS net.IP) string {
	if clusterDNS == nil {
		return ""
	}
	for _, a := range n.Status.Addresses {
		ip := net.ParseIP(a.Address)
		if a.Type == corev1.NodeInternalIP && ip != nil && (ip.To4() == nil) == (clusterDNS.To4() == nil) {
			return a.Address
		}
	}
	return ""
}
