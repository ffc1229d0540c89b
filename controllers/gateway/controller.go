// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/coracle-k8s/coracle/controllers/ingress"
	"github.com/coracle-k8s/coracle/ingress/gateway"
	"github.com/coracle-k8s/coracle/ingress/gatewayapi"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// gatherDelay is how long a round waits for further changes.
	gatherDelay = 50 * time.Millisecond
	// retryDelay is the wait after a failed write before all objects are compared again.
	retryDelay = time.Second
)

// Component is the source of the events.
const Component = "gateway"

// Reasons of events.
const (
	// ReasonServiceExists says that a Service of that name exists which was not made for the Gateway.
	ReasonServiceExists = "ServiceExists"
	// ReasonNoPorts says that all node ports for Gateways are in use.
	ReasonNoPorts = "NoPortsLeft"
)

// All fields of Options are required, except Disabled, Part and Logger.
type Options struct {
	// Client writes objects. Informers are the term's, and are started after New.
	Client    kubernetes.Interface
	Informers informers.SharedInformerFactory
	// State returns the objects of the Gateway API, and whether they are complete. Controller.Changed has to be called
	// when they change.
	State func() (gateway.State, bool)
	// Status writes the status of an object of a resource.
	Status   func(ctx context.Context, resource string, o Object) error
	Recorder record.EventRecorder
	// Disabled removes the Services of Gateways, and writes nothing else.
	Disabled bool
	// Part is the status line.
	Part   *status.Part
	Logger *slog.Logger
}

// Controller syncs the objects of Gateways for one term.
type Controller struct {
	o          Options
	services   corelisters.ServiceLister
	secrets    corelisters.SecretLister
	configs    corelisters.ConfigMapLister
	nodes      corelisters.NodeLister
	namespaces corelisters.NamespaceLister
	slices     discoverylisters.EndpointSliceLister
	synced     []cache.InformerSynced
	wake       timers.Signal // an object has changed

	memory   gateway.Memory
	applied  map[types.NamespacedName]string // last applied Services of this term, in JSON
	warnings *ingress.Warnings
	used     bool // the last round had Gateways or Services of Gateways
}

// New adds handlers to the informers, which must not run yet.
func New(o Options) (*Controller, error) {
	if o.Client == nil || o.Informers == nil || o.State == nil || o.Status == nil || o.Recorder == nil {
		return nil, errors.New("gateway: Client, Informers, State, Status and Recorder are required")
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	core, discovery := o.Informers.Core().V1(), o.Informers.Discovery().V1()
	c := &Controller{
		o: o, services: core.Services().Lister(), secrets: core.Secrets().Lister(), configs: core.ConfigMaps().Lister(),
		nodes:      core.Nodes().Lister(),
		namespaces: core.Namespaces().Lister(), slices: discovery.EndpointSlices().Lister(), wake: timers.NewSignal(),
		applied: map[types.NamespacedName]string{}, warnings: ingress.NewWarnings(o.Client, o.Recorder, Component),
	}
	var err error
	c.synced, err = netinformers.Follow(c.notify, []netinformers.Source{
		{Informer: core.Services().Informer()}, {Informer: core.Secrets().Informer(), Matters: secretMatters},
		{Informer: core.ConfigMaps().Informer()},
		{Informer: core.Nodes().Informer(), Matters: ingress.NodeMatters},
		{Informer: core.Namespaces().Informer()},
		{Informer: discovery.EndpointSlices().Informer(), Matters: sliceMatters},
	}...)
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	return c, nil
}

// Changed says that an object of the Gateway API has changed. It does not block.
func (c *Controller) Changed() {
	c.wake.Send()
}

// notify wakes the controller while there are Gateways.
func (c *Controller) notify(now any) {
	if s, _ := c.o.State(); len(s.Gateways) > 0 || ofGateway(now) {
		c.Changed()
	}
}

// ofGateway reports whether an object is a Service with the label of a Gateway's. A leftover one is removed even if
// there are no Gateways.
func ofGateway(o any) bool {
	svc, ok := o.(*corev1.Service)
	return ok && svc.Labels[table.GatewayLabel] != ""
}

func secretMatters(_, now any) bool {
	s, ok := now.(*corev1.Secret)
	return ok && s.Type != "helm.sh/release.v1"
}

func sliceMatters(_, now any) bool {
	s, ok := now.(*discoveryv1.EndpointSlice)
	return ok && s.Labels[discoveryv1.LabelManagedBy] == sliceManager
}

// Run syncs the objects until ctx is done.
func (c *Controller) Run(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), c.synced...) {
		return nil
	}
	c.wake.Rounds(ctx, gatherDelay, func() time.Duration {
		again, err := c.reconcileAll(ctx)
		if err == nil || ctx.Err() != nil {
			return again
		}
		c.o.Logger.Warn("gateway: not everything could be written; it is tried again", "error", err)
		return retryDelay
	})
	return nil
}

// reconcileAll compares all objects once. It returns the time after which to do so again without a change; 0 for never.
func (c *Controller) reconcileAll(ctx context.Context) (again time.Duration, err error) {
	s, complete := c.o.State()
	if !complete && !c.o.Disabled {
		return 0, nil // objects that are not listed yet are not treated as deleted
	}
	made := c.madeServices()
	if c.o.Disabled {
		s = gateway.State{}
	}
	if len(s.Gateways)+len(made) == 0 && !c.used && len(s.Classes) == 0 {
		c.showStatus(gateway.Result{})
		return c.warnings.End(ctx)
	}
	c.used = len(s.Gateways)+len(made) > 0
	config, _ := c.configs.ConfigMaps(metav1.NamespaceSystem).Get(gatewayapi.PortsName)
	ports := gatewayapi.ReadPorts(config)
	c.complete(&s, ports)
	r, err := gateway.Desired(s)
	if err != nil { // writing JSON failed, which no object can cause
		return 0, fmt.Errorf("compiling the objects: %w", err)
	}
	errs := []error{c.syncPorts(ctx, config, ports, r), c.syncServices(ctx, made, r), c.syncSlices(ctx, made, ports, r)}
	if !c.o.Disabled {
		errs = append(errs, c.syncStatus(ctx, s, r))
	}
	again, failed := c.warnings.End(ctx)
	c.showStatus(r)
	return again, errors.Join(append(errs, failed)...)
}

func (c *Controller) madeServices() map[types.NamespacedName]*corev1.Service {
	all, _ := c.services.List(gatewayapi.Labelled) // a lister of a cache returns no error
	out := map[types.NamespacedName]*corev1.Service{}
	for _, svc := range all {
		if madeForGateway(svc) {
			out[objectKey(svc)] = svc
		}
	}
	return out
}

// complete adds the further objects on which the result depends.
func (c *Controller) complete(s *gateway.State, ports map[string]uint16) {
	s.Now, s.Memory = time.Now(), &c.memory
	s.Namespaces, _ = c.namespaces.List(labels.Everything()) // listers of caches return no error
	s.GatewayServices, _ = c.services.List(gatewayapi.Labelled)
	s.NodePorts = ports
	s.Service = func(name types.NamespacedName) *corev1.Service {
		found, _ := c.services.Services(name.Namespace).Get(name.Name) // nil where there is none
		return found
	}
	s.Secret = func(name types.NamespacedName) *corev1.Secret {
		found, _ := c.secrets.Secrets(name.Namespace).Get(name.Name) // nil where there is none
		return found
	}
	s.ConfigMap = func(name types.NamespacedName) *corev1.ConfigMap {
		found, _ := c.configs.ConfigMaps(name.Namespace).Get(name.Name) // nil where there is none
		return found
	}
}

// syncPorts allocates node ports to sites. It records an event for a Gateway for which no port is left.
func (c *Controller) syncPorts(ctx context.Context, config *corev1.ConfigMap, have map[string]uint16, r gateway.Result) error {
	data, without := choosePorts(have, sitesOf(r.Services))
	for _, want := range r.Services {
		for _, site := range without {
			for _, port := range want.Ports {
				if gateway.Site(want.Gateway.Namespace, want.Gateway.Name, port) == site {
					c.event(want.Gateway, ReasonNoPorts, fmt.Sprintf("the port %d is not served: all of the %d ports of nodes that are "+
						"for ports of Gateways are taken, "+
						"or the %d that one namespace can have; delete a Gateway, or have several share one as ListenerSets", port,
						table.LastGatewayPort-table.FirstGatewayPort+1, maxPorts))
				}
			}
		}
	}
	configs := c.o.Client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	var err error
	switch {
	case config == nil && len(data) == 0, config != nil && len(data) > 0 && maps.Equal(config.Data, data):
		return nil
	case config == nil:
		_, err = configs.Create(ctx, portsObject(data), metav1.CreateOptions{FieldManager: fieldManager})
	case len(data) == 0:
		err = configs.Delete(ctx, gatewayapi.PortsName, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(config.UID))})
	default:
		changed := config.DeepCopy()
		changed.Data, changed.BinaryData = data, nil
		_, err = configs.Update(ctx, changed, metav1.UpdateOptions{FieldManager: fieldManager})
	}
	// the cache receives the newer object
	if err == nil || apierrors.IsConflict(err) || apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err) {
		return nil
	}
	return fmt.Errorf("writing the ConfigMap %s/%s: %w", metav1.NamespaceSystem, gatewayapi.PortsName, err)
}

// syncServices makes the Services of Gateways. It removes those that no Gateway needs.
func (c *Controller) syncServices(ctx context.Context, made map[types.NamespacedName]*corev1.Service, r gateway.Result) error {
	var errs []error
	for name, svc := range made {
		if want, ok := r.Services[name]; ok && isOf(svc, want.Gateway) || svc.DeletionTimestamp != nil {
			continue
		}
		delete(c.applied, name)
		err := c.o.Client.CoreV1().Services(name.Namespace).Delete(ctx, name.Name,
			metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(svc.UID))})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("deleting the Service %s, whose Gateway is gone: %w", name, err))
		}
	}
	for name, want := range r.Services {
		errs = append(errs, c.syncService(ctx, name, want))
	}
	return errors.Join(errs...)
}

func (c *Controller) syncService(ctx context.Context, name types.NamespacedName, want gateway.Service) error {
	have, err := c.services.Services(name.Namespace).Get(name.Name)
	if err == nil && (have.DeletionTimestamp != nil || madeForGateway(have) && !isOf(have, want.Gateway)) {
		return nil // it is made when the old one is deleted
	}
	if err == nil && !isOf(have, want.Gateway) {
		c.event(want.Gateway, ReasonServiceExists, fmt.Sprintf("the Service %s exists and was not made for the Gateway, which has no "+
			"address without it: delete or rename that", name.Name))
		return nil
	}
	apply := serviceConfig(name, want)
	text, jsonErr := json.Marshal(apply)
	if jsonErr != nil {
		return fmt.Errorf("writing the Service %s: %w", name, jsonErr)
	}
	if err == nil && c.applied[name] == string(text) && upToDate(have, apply) {
		return nil
	}
	_, err = c.o.Client.CoreV1().Services(name.Namespace).Apply(ctx, apply, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("writing the Service %s: %w", name, err)
	}
	c.applied[name] = string(text)
	return nil
}

// syncSlices writes the EndpointSlices with the nodes that serve Gateways.
func (c *Controller) syncSlices(ctx context.Context, made map[types.NamespacedName]*corev1.Service, ports map[string]uint16,
	r gateway.Result) error {
	nodes, _ := c.nodes.List(labels.Everything())
	all, _ := c.slices.List(labels.SelectorFromSet(labels.Set{discoveryv1.LabelManagedBy: sliceManager}))
	have := map[types.NamespacedName][]*discoveryv1.EndpointSlice{}
	for _, s := range all {
		name := types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
		have[name] = append(have[name], s)
		if _, ok := made[name]; !ok {
			made[name] = nil
		}
	}
	var errs []error
	for name, svc := range made {
		want := map[string]*discoveryv1.EndpointSlice{}
		if of, ok := r.Services[name]; ok && svc != nil && isOf(svc, of.Gateway) && svc.DeletionTimestamp == nil {
			want = ingress.Slices(name, sliceManager, nodes, func(n *corev1.Node) map[string]int32 {
				if busy := ingress.BusyPorts(svc, n, nodes); len(busy) > 0 {
					c.event(of.Gateway, ingress.ReasonPortInUse,
						fmt.Sprintf("the node %s is no address of the Gateway: another program there listens at TCP %d and keeps it. "+
							"`coracle status` on that machine names it: stop it, or have it listen elsewhere", n.Name, busy[0]))
					return nil
				}
				return servedBy(n, of, ports)
			})
		}
		errs = append(errs, ingress.WriteSlices(ctx, c.o.Client.DiscoveryV1().EndpointSlices(name.Namespace), svc, have[name], want))
	}
	return errors.Join(errs...)
}

// event adds a warning about a problem of a Gateway.
func (c *Controller) event(g *gatewayv1.Gateway, reason, message string) {
	c.warnings.Add(&corev1.ObjectReference{
		APIVersion: gatewayv1.GroupVersion.String(), Kind: "Gateway", Namespace: g.Namespace, Name: g.Name, UID: g.UID,
		ResourceVersion: g.ResourceVersion,
	}, reason, "%s", message)
}

// showStatus sets the status line: how many Gateways are served.
func (c *Controller) showStatus(r gateway.Result) {
	switch {
	case c.o.Disabled:
		c.o.Part.Set(status.Disabled, "")
	case len(r.GatewayStatus) > 0:
		c.o.Part.Set(status.Running, fmt.Sprintf("%d Gateways, of which %d are served", len(r.GatewayStatus), len(r.Services)))
	default:
		c.o.Part.Set(status.Running, "")
	}
}
