// SPDX-License-Identifier: Apache-2.0

// Package gatewayapi reads objects of the Gateway API from an API server, and writes their status.
//
// It owns informers for these objects, which run only while they are used. It decides nothing; ingress/gateway does. If
// the cluster's CustomResourceDefinitions lack some of the kinds, there are no objects of these kinds. The clients in
// the Gateway API's module are not used: they support all of its versions and make the binary larger.
//
// Its goroutines: one informer for each kind that is used.
package gatewayapi

import (
	"context"
	"fmt"
	"reflect"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/coracle-k8s/coracle/ingress/gateway"
)

// Resources of the Gateway API that coracle serves.
const (
	Classes      = "gatewayclasses"
	Gateways     = "gateways"
	ListenerSets = "listenersets"
	HTTPRoutes   = "httproutes"
	GRPCRoutes   = "grpcroutes"
	TLSRoutes    = "tlsroutes"
	Grants       = "referencegrants"
	Policies     = "backendtlspolicies"
)

// exampleTypes has an empty object of each resource, for its Go type.
var exampleTypes = map[string]runtime.Object{
	Classes: &gatewayv1.GatewayClass{}, Gateways: &gatewayv1.Gateway{}, ListenerSets: &gatewayv1.ListenerSet{},
	HTTPRoutes: &gatewayv1.HTTPRoute{},
	GRPCRoutes: &gatewayv1.GRPCRoute{}, TLSRoutes: &gatewayv1.TLSRoute{}, Grants: &gatewayv1.ReferenceGrant{},
	Policies: &gatewayv1.BackendTLSPolicy{},
}

// IsServed reports whether coracle serves a kind of the Gateway API's group.
func IsServed(kind string) bool {
	for _, o := range exampleTypes {
		if reflect.TypeOf(o).Elem().Name() == kind {
			return true
		}
	}
	return false
}

// Use reports whether a cluster has objects of the Gateway API, without the class that every cluster has.
type Use interface {
	// Used returns false only if there are no objects.
	Used() bool
	// Changed returns a channel that is closed when the result of Used may have changed.
	Changed() <-chan struct{}
}

// Client reads and writes objects of the Gateway API.
type Client struct {
	rest      rest.Interface
	discovery discovery.DiscoveryInterface
	metadata  metadata.Interface
}

// New makes a client from a client configuration that may read and write the objects.
func New(config *rest.Config) (*Client, error) {
	scheme := runtime.NewScheme()
	if err := gatewayv1.Install(scheme); err != nil {
		return nil, fmt.Errorf("making a client for the Gateway API: %w", err)
	}
	c := rest.CopyConfig(config)
	c.APIPath, c.GroupVersion = "/apis", &schema.GroupVersion{Group: gatewayv1.GroupName, Version: gatewayv1.GroupVersion.Version}
	c.ContentType, c.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON // custom resources have no other encoding
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	objects, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("making a client for the Gateway API: %w", err)
	}
	found, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client for the Gateway API: %w", err)
	}
	definitions, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client for the Gateway API: %w", err)
	}
	return &Client{rest: objects, discovery: found, metadata: definitions}, nil
}

func (c *Client) servedKinds() (map[string]bool, error) {
	out := map[string]bool{}
	list, err := c.discovery.ServerResourcesForGroupVersion(gatewayv1.GroupVersion.String())
	if apierrors.IsNotFound(err) {
		return out, nil
	}
	if err != nil {
		return nil, fmt.Errorf("asking which kinds of the Gateway API there are: %w", err)
	}
	for _, r := range list.APIResources {
		if exampleTypes[r.Name] != nil {
			out[r.Name] = true
		}
	}
	return out, nil
}

// CRDVersion returns the version in the cluster's definition of GatewayClasses. It returns "" if there is none.
func (c *Client) CRDVersion(ctx context.Context) (string, error) {
	definitions := c.metadata.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1",
		Resource: "customresourcedefinitions"})
	have, err := definitions.Get(ctx, Classes+"."+gatewayv1.GroupName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the version of the Gateway API's definitions: %w", err)
	}
	return have.Annotations[gateway.BundleVersionAnnotation], nil
}

// Class returns the class with the given name, or nil if there is none.
func (c *Client) Class(ctx context.Context, name string) (*gatewayv1.GatewayClass, error) {
	out := &gatewayv1.GatewayClass{}
	err := c.rest.Get().Resource(Classes).Name(name).Do(ctx).Into(out)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the GatewayClass %s: %w", name, err)
	}
	return out, nil
}

// CreateClass creates a class.
func (c *Client) CreateClass(ctx context.Context, class *gatewayv1.GatewayClass) error {
	return c.rest.Post().Resource(Classes).Body(class).Do(ctx).Error()
}

// DeleteClass deletes a class.
func (c *Client) DeleteClass(ctx context.Context, class *gatewayv1.GatewayClass) error {
	uid := class.UID
	return c.rest.Delete().Resource(Classes).Name(class.Name).
		Body(&metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}).Do(ctx).Error()
}

// UpdateStatus writes the status of an object of a resource. The object has its resource version, so that a conflict is
// an error.
func (c *Client) UpdateStatus(ctx context.Context, resource string, o interface {
	metav1.Object
	runtime.Object
}) error {
	return c.rest.Put().NamespaceIfScoped(o.GetNamespace(),
		resource != Classes).Resource(resource).Name(o.GetName()).SubResource("status").Body(o).Do(ctx).Error()
}

// recheckInterval is the interval between queries for further kinds, while the cluster lacks some.
const recheckInterval = 10 * time.Second
