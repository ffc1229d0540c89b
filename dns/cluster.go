// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/plugin/kubernetes"
	"github.com/coredns/coredns/plugin/kubernetes/object"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/internal/netinformers"
)

// The indexes that are added to the shared caches.
const (
	byClusterIP = "dns-cluster-ip" // of Services
	byService   = "dns-service"    // of EndpointSlices
	byAddress   = "dns-address"    // of EndpointSlices
)

// cluster replaces the caches of CoreDNS' kubernetes plugin. It reads the caches that the node's network parts share,
// and makes CoreDNS' objects on demand. It implements the plugin's interface dnsController.
type cluster struct {
	services, slices, namespaces cache.Indexer
	nodes                        corelisters.NodeLister
	synced                       []cache.DoneChecker
	lastChange                   atomic.Int64 // when a Service or an EndpointSlice changed last, in Unix seconds
	log                          klog.Logger
}

func newCluster(i *netinformers.Informers, log klog.Logger) (*cluster, error) {
	from, err := i.Names()
	if err != nil {
		return nil, err
	}
	services, slices, namespaces := from.Services.Informer(), from.EndpointSlices.Informer(), from.Namespaces.Informer()
	if err := errors.Join(
		services.AddIndexers(cache.Indexers{byClusterIP: clusterIPs}),
		slices.AddIndexers(cache.Indexers{byService: serviceOf, byAddress: addresses}),
	); err != nil {
		return nil, fmt.Errorf("finding Services by their addresses: %w", err)
	}
	c := &cluster{
		services: services.GetIndexer(), slices: slices.GetIndexer(), namespaces: namespaces.GetIndexer(), nodes: i.Nodes().Lister(),
		log:    log,
		synced: []cache.DoneChecker{services.HasSyncedChecker(), slices.HasSyncedChecker(), namespaces.HasSyncedChecker()},
	}
	_, err = netinformers.Follow(func(any) { c.lastChange.Store(time.Now().Unix()) },
		netinformers.Source{Informer: services, Matters: versionChanged}, netinformers.Source{Informer: slices, Matters: versionChanged})
	return c, err
}

func versionChanged(old, now any) bool {
	a, was := old.(metav1.Object)
	b, is := now.(metav1.Object)
	return !was || !is || a.GetResourceVersion() != b.GetResourceVersion()
}

// wait waits until the caches are complete, for apiWait at most. Without the API, external names are answered all the
// same.
func (c *cluster) wait() error {
	ctx, cancel := context.WithTimeout(context.Background(), apiWait)
	defer cancel()
	if !cache.WaitFor(ctx, "", c.synced...) {
		c.log.Info("Cluster DNS answers without the cluster's names until a server has sent them")
	}
	return nil
}

// HasSynced reports whether every question about the cluster can be answered.
func (c *cluster) HasSynced() bool {
	return !slices.ContainsFunc(c.synced, func(s cache.DoneChecker) bool { return !cache.IsDone(s) })
}

// The functions of the indexes.

func clusterIPs(o any) ([]string, error) {
	s, ok := o.(*corev1.Service)
	switch {
	case !ok:
		return nil, fmt.Errorf("%T is no Service", o)
	case len(s.Spec.ClusterIPs) > 0:
		return s.Spec.ClusterIPs, nil
	}
	return []string{s.Spec.ClusterIP}, nil
}

func serviceOf(o any) ([]string, error) {
	s, ok := o.(*discoveryv1.EndpointSlice)
	if !ok {
		return nil, fmt.Errorf("%T is no EndpointSlice", o)
	}
	return []string{object.EndpointsKey(s.Labels[discoveryv1.LabelServiceName], s.Namespace)}, nil
}

func addresses(o any) (out []string, err error) {
	s, ok := o.(*discoveryv1.EndpointSlice)
	if !ok {
		return nil, fmt.Errorf("%T is no EndpointSlice", o)
	}
	if service := s.Labels[discoveryv1.LabelServiceName]; service == "" || strings.Contains(service, ".") {
		return nil, nil // no Service can have this name; CoreDNS would make a name of it that cannot be encoded, and not reply at all
	}
	for i := range s.Endpoints {
		if ready := s.Endpoints[i].Conditions.Ready; ready == nil || *ready {
			out = append(out, s.Endpoints[i].Addresses...)
		}
	}
	return out, nil
}

// convertAll converts the API's objects to CoreDNS', with one of CoreDNS' functions.
func convertAll[T any](all []any, convert func(any) (metav1.Object, error)) []T {
	out := make([]T, 0, len(all))
	for _, o := range all {
		if m, err := convert(o); err == nil {
			if t, ok := any(m).(T); ok {
				out = append(out, t)
			}
		}
	}
	return out
}

func servicesOf(all []any) []*object.Service {
	return convertAll[*object.Service](all, func(o any) (metav1.Object, error) {
		s, ok := o.(*corev1.Service)
		if !ok {
			return nil, fmt.Errorf("%T is no Service", o)
		}
		emptied := *s // a copy: CoreDNS empties it
		return object.ToService(&emptied)
	})
}

func endpointsOf(all []any) []*object.Endpoints {
	return convertAll[*object.Endpoints](all, func(o any) (metav1.Object, error) {
		s, ok := o.(*discoveryv1.EndpointSlice)
		if !ok {
			return nil, fmt.Errorf("%T is no EndpointSlice", o)
		}
		emptied := *s // a copy: CoreDNS empties it
		return object.EndpointSliceToEndpoints(&emptied)
	})
}

func findIndexed(in cache.Indexer, index, value string) []any {
	all, err := in.ByIndex(index, value)
	if err != nil {
		return nil // there is no such index, which newCluster has reported
	}
	return all
}

// ServiceList returns all Services.
func (c *cluster) ServiceList() []*object.Service { return servicesOf(c.services.List()) }

// EndpointsList returns all EndpointSlices.
func (c *cluster) EndpointsList() []*object.Endpoints { return endpointsOf(c.slices.List()) }

// SvcIndex returns the Service with a key of object.ServiceKey.
func (c *cluster) SvcIndex(key string) []*object.Service {
	name, namespace, _ := strings.Cut(key, ".")
	s, has, err := c.services.GetByKey(namespace + "/" + name)
	if err != nil || !has {
		return nil
	}
	return servicesOf([]any{s})
}

// SvcIndexReverse returns the Services with a cluster IP.
func (c *cluster) SvcIndexReverse(ip string) []*object.Service {
	return servicesOf(findIndexed(c.services, byClusterIP, ip))
}

// SvcExtIndexReverse returns the Services with an external IP. None of the linked plugins calls it, so there is no
// index.
func (c *cluster) SvcExtIndexReverse(ip string) (out []*object.Service) {
	for _, s := range c.ServiceList() {
		for _, external := range s.ExternalIPs {
			if external == ip {
				out = append(out, s)
				break
			}
		}
	}
	return out
}

// EpIndex returns the EndpointSlices of a Service, by a key of object.EndpointsKey.
func (c *cluster) EpIndex(key string) []*object.Endpoints {
	return endpointsOf(findIndexed(c.slices, byService, key))
}

// EpIndexReverse returns the EndpointSlices with a ready endpoint at an address.
func (c *cluster) EpIndexReverse(ip string) []*object.Endpoints {
	return endpointsOf(findIndexed(c.slices, byAddress, ip))
}

// GetNamespaceByName returns an error where there is no such Namespace.
func (c *cluster) GetNamespaceByName(name string) (*object.Namespace, error) {
	o, has, err := c.namespaces.GetByKey(name)
	if err != nil || !has {
		return nil, errNoNamespace
	}
	n, ok := o.(*corev1.Namespace)
	if !ok {
		return nil, errNoNamespace
	}
	return &object.Namespace{Version: n.ResourceVersion, Name: n.Name}, nil
}

var errNoNamespace = errors.New("no such namespace")

// GetNodeByName returns a Node with only those fields that the network parts need.
func (c *cluster) GetNodeByName(_ context.Context, name string) (*corev1.Node, error) {
	return c.nodes.Get(name)
}

// Modified returns when the cluster's names changed last, in Unix seconds: the serial number of the zone.
func (c *cluster) Modified(kubernetes.ModifiedMode) int64 { return c.lastChange.Load() }

// Run and Stop do nothing: the caches belong to the caller, and outlast every configuration.

// Run returns at once.
func (c *cluster) Run() {}

// Stop returns at once.
func (c *cluster) Stop() error { return nil }

// Pods are not watched: their names are answered from the address in the name (`pods insecure`). Neither are
// ServiceImports, which belong to multi-cluster zones.

// PodIndex returns nothing.
func (c *cluster) PodIndex(string) []*object.Pod { return nil }

// ServiceImportList returns nothing.
func (c *cluster) ServiceImportList() []*object.ServiceImport { return nil }

// SvcImportIndex returns nothing.
func (c *cluster) SvcImportIndex(string) []*object.ServiceImport { return nil }

// McEpIndex returns nothing.
func (c *cluster) McEpIndex(string) []*object.MultiClusterEndpoints { return nil }
