// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/controlplane/reconcilers"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/server/apiserver/memtransport"
)

const (
	// endpointInterval is how often the list of servers is read. The API is called only when the list has changed, and
	// once per endpointCheck. That check reads two objects or a few more, and writes nothing if they are right.
	endpointInterval = 500 * time.Millisecond
	endpointCheck    = 10 * time.Second
	endpointTimeout  = 10 * time.Second
	// managedBy marks the slices besides the first, which are removed when they are no longer needed.
	managedBy = "coracle"
)

// Clients older than EndpointSlices read Endpoints. Upstream maintains both, too.
type (
	coreEndpoints  = corev1.Endpoints      //nolint:staticcheck // see above
	endpointSubset = corev1.EndpointSubset //nolint:staticcheck // see above
)

// endpointReconciler keeps the endpoints of the kubernetes Service. Upstream's default proves liveness by a lease per
// server, which is renewed for ever. This one reads the servers' addresses and writes only when they change.
//
// Only the leader knows which servers are alive, and only during its term. A leader that was paused knows of no other
// server when it resumes, and would remove all others before it notices that its term is over. So every write carries
// the number of its term, and the store refuses a write whose term has ended.
type endpointReconciler struct {
	client  kubernetes.Interface
	servers func() ServersOfService
	// ipv6 says whether the Service's family is IPv6.
	ipv6 bool
	now  func() time.Time

	mu      sync.Mutex
	stopped bool
	// withTerm adds a term to a context: the one in which the leader knew the servers that are being written.
	withTerm func(context.Context) context.Context
	// applied are the servers for which the objects were right at the time checked.
	applied serverList
	checked time.Time
}

var _ reconcilers.EndpointReconciler = (*endpointReconciler)(nil)

// serverList has the addresses of the cluster's servers. Clients are sent only to ready servers.
type serverList struct{ ready, unready []netip.AddrPort }

// sorted returns the list in order, with each server once. A server without a port gets the port usual. A ready server
// is not among the unready ones.
func (l serverList) sorted(usual uint16) serverList {
	each := func(in, but []netip.AddrPort) []netip.AddrPort {
		var out []netip.AddrPort
		for _, s := range in {
			if s.Port() == 0 {
				s = netip.AddrPortFrom(s.Addr(), usual)
			}
			if !slices.Contains(but, s) {
				out = append(out, s)
			}
		}
		slices.SortFunc(out, netip.AddrPort.Compare)
		return slices.Compact(out)
	}
	ready := each(l.ready, nil)
	return serverList{ready, each(l.unready, ready)}
}

func (l serverList) equal(m serverList) bool {
	return slices.Equal(l.ready, m.ready) && slices.Equal(l.unready, m.unready)
}

func newEndpointReconciler(config *rest.Config, transport *memtransport.Transport, o Options) (*endpointReconciler, error) {
	r := &endpointReconciler{servers: o.EndpointAddresses, now: time.Now}
	config = rest.CopyConfig(config)
	config.Transport = transport.Marked(r.marked)
	var err error
	if r.client, err = kubernetes.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("building the endpoint reconciler's client: %w", err)
	}
	if r.servers == nil {
		own, _ := netip.AddrFromSlice(o.AdvertiseAddress)
		r.servers = func() ServersOfService {
			return ServersOfService{Ready: []netip.AddrPort{netip.AddrPortFrom(own.Unmap(), 0)}}
		}
	}
	r.ipv6 = o.Cluster.ServiceCIDRs[0].Addr().Is6()
	return r, nil
}

// marked adds the term of the servers that are being written to a request's context (mark). The requests of
// ReconcileEndpoints call it, in its goroutine.
func (r *endpointReconciler) marked(ctx context.Context) context.Context {
	if r.withTerm == nil {
		return ctx
	}
	return r.withTerm(ctx)
}

// alignedReconciler is an endpointReconciler that returns at the next multiple of endpointInterval, so that the process
// wakes for it when it wakes for other timers. Upstream then calls again at once: its own interval is half as long, and
// has elapsed by then.
type alignedReconciler struct{ *endpointReconciler }

// ReconcileEndpoints implements reconcilers.EndpointReconciler.
func (r alignedReconciler) ReconcileEndpoints(service string, ip net.IP, ports []corev1.EndpointPort, reconcilePorts bool) error {
	defer func() { time.Sleep(timers.Until(endpointInterval)) }()
	return r.endpointReconciler.ReconcileEndpoints(service, ip, ports, reconcilePorts)
}

// ValidateIP implements reconcilers.EndpointReconciler.
func (r *endpointReconciler) ValidateIP(ip net.IP) error {
	return validation.ValidateEndpointIP(ip.String(), nil).ToAggregate()
}

// ReconcileEndpoints implements reconcilers.EndpointReconciler.
func (r *endpointReconciler) ReconcileEndpoints(service string, ip net.IP, ports []corev1.EndpointPort, _ bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return nil
	}
	now := r.servers()
	if len(now.Ready) == 0 {
		r.applied = serverList{}
		return nil
	}
	r.withTerm = now.Mark
	servers := serverList{now.Ready, now.Unready}.sorted(uint16(ports[0].Port))
	changed := !servers.equal(r.applied)
	if !changed && r.now().Sub(r.checked) < endpointCheck {
		return nil
	}
	r.applied = serverList{}
	ctx, cancel := context.WithTimeout(context.Background(), endpointTimeout)
	defer cancel()
	endpoints, parts := desiredEndpoints(service, servers, ports[0], r.ipv6)
	errs := []error{r.applyEndpoints(ctx, endpoints)}
	for _, slice := range parts {
		errs = append(errs, r.applySlice(ctx, slice))
	}
	if changed {
		errs = append(errs, r.prune(ctx, service, parts))
	}
	err := errors.Join(errs...)
	if err == nil {
		r.applied, r.checked = servers, r.now()
	}
	return err
}

// RemoveEndpoints implements reconcilers.EndpointReconciler. It removes nothing. The pods of a server that stops keep
// running, and need its address when it starts again. A server that is removed from the cluster leaves the list of
// addresses instead.
func (r *endpointReconciler) RemoveEndpoints(string, net.IP, []corev1.EndpointPort) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return nil
	}
	// Upstream calls this at start, before anything was reconciled. "Not found" means that nothing is stale.
	return storage.NewKeyNotFoundError("masterleases", 0)
}

// StopReconciling implements reconcilers.EndpointReconciler.
func (r *endpointReconciler) StopReconciling() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
}

// Destroy implements reconcilers.EndpointReconciler.
func (r *endpointReconciler) Destroy() {}

// desiredEndpoints returns both forms of the Service's endpoints. An EndpointSlice has one family, and one port for all
// its endpoints, so there is a slice for each pair of family and port that servers have. The first slice has the
// Service's name. It is one with ready servers, of the Service's family if possible, and with the port that most of
// these have. The Endpoints object, which has no family, lists the servers of the first slice's family.
func desiredEndpoints(service string, servers serverList, port corev1.EndpointPort, ipv6 bool) (*coreEndpoints,
	[]*discoveryv1.EndpointSlice) {
	type subset struct {
		ipv6 bool
		port uint16
	}
	of := func(s netip.AddrPort) subset { return subset{s.Addr().Is6(), s.Port()} }
	ready, unready := map[subset][]string{}, map[subset][]string{}
	for _, s := range servers.ready {
		ready[of(s)] = append(ready[of(s)], s.Addr().String())
	}
	for _, s := range servers.unready {
		unready[of(s)] = append(unready[of(s)], s.Addr().String())
	}
	all := maps.Clone(ready)
	maps.Copy(all, unready)
	rank := func(first bool) int {
		if first {
			return 0
		}
		return 1
	}
	subsets := slices.SortedFunc(maps.Keys(all), func(a, b subset) int {
		return cmp.Or(cmp.Compare(rank(len(ready[a]) > 0), rank(len(ready[b]) > 0)),
			cmp.Compare(rank(a.ipv6 == ipv6), rank(b.ipv6 == ipv6)),
			cmp.Compare(len(ready[b]), len(ready[a])), cmp.Compare(a.port, b.port))
	})
	endpoints := &coreEndpoints{ObjectMeta: metav1.ObjectMeta{Name: service, Namespace: metav1.NamespaceDefault}}
	endpoints.Labels = map[string]string{discoveryv1.LabelSkipMirror: "true"}
	var out []*discoveryv1.EndpointSlice
	for i, p := range subsets {
		own := port
		own.Port = int32(p.port)
		slice := endpointSlice(service, own, p.ipv6, i == 0)
		slice.Endpoints = slices.Concat(endpointsAt(ready[p], true), endpointsAt(unready[p], false))
		if out = append(out, slice); p.ipv6 == subsets[0].ipv6 {
			endpoints.Subsets = append(endpoints.Subsets, endpointSubset{
				Addresses: addressesAt(ready[p]), NotReadyAddresses: addressesAt(unready[p]), Ports: []corev1.EndpointPort{own},
			})
		}
	}
	return endpoints, out
}

// endpointsAt sets the condition Serving to the value of Ready: an absent condition would count as true.
func endpointsAt(ips []string, ready bool) (out []discoveryv1.Endpoint) {
	for _, ip := range ips {
		out = append(out, discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &ready,
			Serving: &ready}})
	}
	return out
}

func addressesAt(ips []string) (out []corev1.EndpointAddress) {
	for _, ip := range ips {
		out = append(out, corev1.EndpointAddress{IP: ip})
	}
	return out
}

func endpointSlice(service string, port corev1.EndpointPort, ipv6, first bool) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: service, Namespace: metav1.NamespaceDefault},
		AddressType: discoveryv1.AddressTypeIPv4}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: service}
	if ipv6 {
		slice.AddressType = discoveryv1.AddressTypeIPv6
	}
	if !first {
		slice.Name = fmt.Sprintf("%s-%s-%d", service, strings.ToLower(string(slice.AddressType)), port.Port)
		slice.Labels[discoveryv1.LabelManagedBy] = managedBy
	}
	slice.Ports = []discoveryv1.EndpointPort{{Name: &port.Name, Port: &port.Port, Protocol: &port.Protocol}}
	return slice
}

// prune removes slices that are no longer needed.
func (r *endpointReconciler) prune(ctx context.Context, service string, keep []*discoveryv1.EndpointSlice) error {
	api := r.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault)
	have, err := api.List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service + "," +
		discoveryv1.LabelManagedBy + "=" + managedBy})
	if err != nil {
		return endpointError("listing the endpoint slices", service, err)
	}
	var errs []error
	for _, h := range have.Items {
		if slices.ContainsFunc(keep, func(k *discoveryv1.EndpointSlice) bool { return k.Name == h.Name }) {
			continue
		}
		if err := api.Delete(ctx, h.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, endpointError("removing the endpoint slice "+h.Name, service, err))
		}
	}
	return errors.Join(errs...)
}

func (r *endpointReconciler) applyEndpoints(ctx context.Context, want *coreEndpoints) error {
	api := r.client.CoreV1().Endpoints(want.Namespace)
	have, err := api.Get(ctx, want.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = api.Create(ctx, want, metav1.CreateOptions{})
		return endpointError("creating the endpoints", want.Name, err)
	case err != nil:
		return endpointError("reading the endpoints", want.Name, err)
	}
	if equality.Semantic.DeepEqual(have.Subsets, want.Subsets) && have.Labels[discoveryv1.LabelSkipMirror] == "true" {
		return nil
	}
	have.Subsets = want.Subsets
	metav1.SetMetaDataLabel(&have.ObjectMeta, discoveryv1.LabelSkipMirror, "true")
	_, err = api.Update(ctx, have, metav1.UpdateOptions{})
	return endpointError("updating the endpoints", want.Name, err)
}

func (r *endpointReconciler) applySlice(ctx context.Context, want *discoveryv1.EndpointSlice) error {
	api := r.client.DiscoveryV1().EndpointSlices(want.Namespace)
	have, err := api.Get(ctx, want.Name, metav1.GetOptions{})
	if err == nil && have.AddressType != want.AddressType { // immutable: the Service's family has changed
		if err := api.Delete(ctx, want.Name, metav1.DeleteOptions{}); err != nil {
			return endpointError("replacing the endpoint slice", want.Name, err)
		}
		err = apierrors.NewNotFound(discoveryv1.Resource("endpointslices"), want.Name)
	}
	switch {
	case apierrors.IsNotFound(err):
		_, err = api.Create(ctx, want, metav1.CreateOptions{})
		return endpointError("creating the endpoint slice", want.Name, err)
	case err != nil:
		return endpointError("reading the endpoint slice", want.Name, err)
	}
	labels := maps.Clone(have.Labels)
	for name, value := range want.Labels { // without them it is not found, or not removed
		metav1.SetMetaDataLabel(&have.ObjectMeta, name, value)
	}
	if equality.Semantic.DeepEqual(have.Endpoints, want.Endpoints) && equality.Semantic.DeepEqual(have.Ports, want.Ports) &&
		maps.Equal(labels, have.Labels) {
		return nil
	}
	have.Endpoints, have.Ports = want.Endpoints, want.Ports
	_, err = api.Update(ctx, have, metav1.UpdateOptions{})
	return endpointError("updating the endpoint slice", want.Name, err)
}

func endpointError(doing, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s of Service %s: %w", doing, strings.Join([]string{metav1.NamespaceDefault, name}, "/"), err)
}
