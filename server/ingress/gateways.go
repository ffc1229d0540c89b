// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/ingress/gateway"
	"github.com/coracle-k8s/coracle/ingress/gatewayapi"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// Gateways is the source of the objects of the Gateway API.
type Gateways struct {
	Client *gatewayapi.Client
	Use    gatewayapi.Use
}

// gateways follows the objects from which Gateways' tables are compiled, while there are any.
type gateways struct {
	client  kubernetes.Interface
	usage   gatewayapi.Use
	objects *gatewayapi.Objects
	wake    func(any)
	// core has Services and Namespaces. ports has the ConfigMap gatewayapi.PortsName. Both are nil until there is a
	// Gateway.
	core, ports informers.SharedInformerFactory
	synced      []cache.InformerSynced
	secrets     *reads[corev1.Secret]
	configs     *reads[corev1.ConfigMap]
	memory      gateway.Memory
}

func newGateways(client kubernetes.Interface, g *Gateways, poke func(any), log *slog.Logger) *gateways {
	return &gateways{client: client, usage: g.Use, objects: gatewayapi.NewObjects(g.Client, func() { poke(nil) }, log), wake: poke}
}

// follow follows the other objects, from the first Gateway on, until ctx is done.
func (g *gateways) follow(ctx context.Context) error {
	g.core = informers.NewSharedInformerFactoryWithOptions(g.client, 0, informers.WithTransform(slimService))
	g.ports = informers.NewSharedInformerFactoryWithOptions(g.client, 0, informers.WithNamespace(metav1.NamespaceSystem),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, gatewayapi.PortsName).String()
		}))
	synced, err := netinformers.Follow(g.wake, []netinformers.Source{
		{Informer: g.core.Core().V1().Services().Informer()}, {Informer: g.core.Core().V1().Namespaces().Informer()},
		{Informer: g.ports.Core().V1().ConfigMaps().Informer()},
	}...)
	if err != nil { // only for an informer that has ended, and none has begun
		return err
	}
	g.synced = append(g.synced, synced...)
	g.core.Start(ctx.Done())
	g.ports.Start(ctx.Done())
	return nil
}

func (g *gateways) shutdown() {
	if g.core != nil {
		g.core.Shutdown()
		g.ports.Shutdown()
	}
}

// slimService drops the fields of Services and Namespaces that the table does not depend on.
func slimService(o any) (any, error) {
	switch o := o.(type) {
	case *corev1.Service:
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: o.Namespace, Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion, Labels: o.Labels,
				CreationTimestamp: o.CreationTimestamp,
			},
			Spec: corev1.ServiceSpec{Type: o.Spec.Type, ClusterIP: o.Spec.ClusterIP, Ports: o.Spec.Ports,
				ExternalName: o.Spec.ExternalName},
		}, nil
	case *corev1.Namespace:
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion,
			Labels: o.Labels}}, nil
	}
	return o, nil
}

// sections returns the table of all Gateways. It is not complete while objects are being read for the first time. again
// is the time after which it has to be called again without a change, 0 for never.
func (g *gateways) sections(ctx context.Context, secret func(types.NamespacedName) *corev1.Secret) (_ table.Sections, again time.Duration,
	complete bool, _ error) {
	state, complete := g.objects.State(g.usage)
	if !complete || len(state.Gateways) == 0 {
		return nil, 0, complete, nil
	}
	if g.core == nil {
		if err := g.follow(ctx); err != nil {
			return nil, 0, false, err
		}
	}
	if !cache.WaitForCacheSync(ctx.Done(), g.synced...) {
		return nil, 0, false, nil
	}
	g.addCore(&state, secret)
	r, err := gateway.Desired(state)
	if err != nil {
		return nil, 0, true, err
	}
	var secrets []types.NamespacedName
	for name := range r.Secrets {
		if secret(name) == nil {
			secrets = append(secrets, name)
		}
	}
	changed, again := g.secrets.sync(ctx, secrets)
	configs, later := g.configs.sync(ctx, slices.Collect(maps.Keys(r.ConfigMaps)))
	again = timers.ShorterWait(again, later)
	if changed || configs {
		r, err = gateway.Desired(state)
		again = cmp.Or(again, gatherDelay) // the result may name further objects
	}
	return r.Sections, again, ctx.Err() == nil, err
}

// addCore adds the other objects to those of the Gateway API.
func (g *gateways) addCore(state *gateway.State, secret func(types.NamespacedName) *corev1.Secret) {
	core := g.core.Core().V1()
	state.Now, state.Memory = time.Now(), &g.memory
	state.Namespaces, _ = core.Namespaces().Lister().List(labels.Everything()) // caches' listers return no errors
	state.GatewayServices, _ = core.Services().Lister().List(gatewayapi.Labelled)
	ports, _ := g.ports.Core().V1().ConfigMaps().Lister().ConfigMaps(metav1.NamespaceSystem).Get(gatewayapi.PortsName)
	state.NodePorts = gatewayapi.ReadPorts(ports)
	state.Service = func(name types.NamespacedName) *corev1.Service {
		found, _ := core.Services().Lister().Services(name.Namespace).Get(name.Name) // nil if there is none
		return found
	}
	state.Secret = func(name types.NamespacedName) *corev1.Secret {
		if found := secret(name); found != nil {
			return found
		}
		return g.secrets.object(name)
	}
	state.ConfigMap = g.configs.object
}
