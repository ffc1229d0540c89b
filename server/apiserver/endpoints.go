// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
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
)

// endpointInterval is how often the kubernetes Service's endpoints are compared
// with the servers; the comparison reads two objects and writes nothing when they are right.
const endpointInterval = 10 * time.Second

// Clients older than EndpointSlices read Endpoints; upstream keeps both too.
type (
	coreEndpoints  = corev1.Endpoints      //nolint:staticcheck // see above
	endpointSubset = corev1.EndpointSubset //nolint:staticcheck // see above
)

// endpointReconciler keeps the endpoints of the kubernetes Service. Upstream's
// default proves liveness with a lease per server that is rewritten for ever;
// this one asks for the servers' addresses and writes only when they change.
type endpointReconciler struct {
	client    kubernetes.Interface
	addresses func() []net.IP

	mu      sync.Mutex
	stopped bool
}

var _ reconcilers.EndpointReconciler = (*endpointReconciler)(nil)

func newEndpointReconciler(config *rest.Config, o Options) (*endpointReconciler, error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("building the endpoint reconciler's client: %w", err)
	}
	addresses := o.EndpointAddresses
	if addresses == nil {
		addresses = func() []net.IP { return []net.IP{o.AdvertiseAddress} }
	}
	return &endpointReconciler{client: client, addresses: addresses}, nil
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
	addresses := r.addresses()
	if len(addresses) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), endpointInterval)
	defer cancel()
	endpoints, slice := desiredEndpoints(service, addresses, ports)
	return errors.Join(r.applyEndpoints(ctx, endpoints), r.applySlice(ctx, slice))
}

// RemoveEndpoints implements reconcilers.EndpointReconciler. It removes nothing:
// a server that stops keeps its pods, and they keep the address to come back to.
// A server that leaves for good leaves the list of addresses instead.
func (r *endpointReconciler) RemoveEndpoints(string, net.IP, []corev1.EndpointPort) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return nil
	}
	// Asked at start, before anything was reconciled: "not found" is upstream's word for "nothing stale".
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

// desiredEndpoints is both forms of the Service's endpoints, addresses in order.
// Addresses of another family than the first are left out: the Service has one.
func desiredEndpoints(service string, addresses []net.IP, ports []corev1.EndpointPort) (*coreEndpoints, *discoveryv1.EndpointSlice) {
	ipv6 := addresses[0].To4() == nil
	var ips []string
	for _, a := range addresses {
		if (a.To4() == nil) == ipv6 {
			ips = append(ips, a.String())
		}
	}
	slices.Sort(ips)
	ips = slices.Compact(ips)

	meta := metav1.ObjectMeta{Name: service, Namespace: metav1.NamespaceDefault}
	endpoints := &coreEndpoints{ObjectMeta: meta}
	endpoints.Labels = map[string]string{discoveryv1.LabelSkipMirror: "true"}
	slice := &discoveryv1.EndpointSlice{ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: service}
	if ipv6 {
		slice.AddressType = discoveryv1.AddressTypeIPv6
	}
	subset := endpointSubset{Ports: ports}
	ready := true
	for _, ip := range ips {
		subset.Addresses = append(subset.Addresses, corev1.EndpointAddress{IP: ip})
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		})
	}
	endpoints.Subsets = []endpointSubset{subset}
	for _, p := range ports {
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &p.Protocol})
	}
	return endpoints, slice
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
	if err == nil && have.AddressType != want.AddressType { // immutable: the cluster moved to the other family
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
	if equality.Semantic.DeepEqual(have.Endpoints, want.Endpoints) && equality.Semantic.DeepEqual(have.Ports, want.Ports) &&
		have.Labels[discoveryv1.LabelServiceName] == want.Name {
		return nil
	}
	have.Endpoints, have.Ports = want.Endpoints, want.Ports
	metav1.SetMetaDataLabel(&have.ObjectMeta, discoveryv1.LabelServiceName, want.Name)
	_, err = api.Update(ctx, have, metav1.UpdateOptions{})
	return endpointError("updating the endpoint slice", want.Name, err)
}

func endpointError(doing, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s of Service %s: %w", doing, strings.Join([]string{metav1.NamespaceDefault, name}, "/"), err)
}
