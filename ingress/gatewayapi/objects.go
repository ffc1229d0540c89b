// SPDX-License-Identifier: Apache-2.0

package gatewayapi

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/ingress/gateway"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// Objects are the objects of the cluster. They are watched while the cluster uses the Gateway API.
type Objects struct {
	client  *Client
	changed func()
	log     *slog.Logger
	current atomic.Pointer[followedKinds]
}

// followedKinds are the informers of the kinds that the cluster has.
type followedKinds struct {
	informers map[string]cache.SharedIndexInformer
	synced    []cache.InformerSynced
	version   string // of the definitions
}

// NewObjects makes Objects. Their goroutines call changed when an object has changed. changed must not block.
func NewObjects(c *Client, changed func(), log *slog.Logger) *Objects {
	return &Objects{client: c, changed: changed, log: log}
}

// Run watches the objects while use reports that there are some, until ctx is done.
func (o *Objects) Run(ctx context.Context, use Use) {
	for ctx.Err() == nil {
		used, changed := use.Used(), use.Changed()
		if used != use.Used() {
			continue // it changed between the two calls
		}
		if !used {
			select {
			case <-ctx.Done():
			case <-changed:
			}
			continue
		}
		o.follow(ctx, use)
	}
}

// follow watches the objects until there are none any more, or the cluster has other kinds.
func (o *Objects) follow(ctx context.Context, use Use) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	defer o.changed()
	defer o.current.Store(nil)
	var kinds map[string]bool
	var version string
	timers.Retry(ctx, o.log, time.Second, "gateway: the kinds of the Gateway API cannot be read yet; it is tried again", func() (err error) {
		kinds, version, err = o.ask(ctx)
		return err
	})
	if ctx.Err() != nil {
		return
	}
	f := &followedKinds{informers: map[string]cache.SharedIndexInformer{}, version: version}
	for name := range kinds {
		i, err := o.informer(name)
		if err != nil { // the informer has not begun
			o.log.Error("gateway: listening to an informer failed", "error", err)
			return
		}
		f.informers[name], f.synced = i, append(f.synced, i.HasSynced)
		running.Go(func() { i.RunWithContext(ctx) })
	}
	if !cache.WaitForCacheSync(ctx.Done(), f.synced...) {
		return
	}
	o.current.Store(f)
	o.changed()
	for {
		changed := use.Changed()
		if !use.Used() {
			return
		}
		var again <-chan time.Time
		if len(kinds) < len(exampleTypes) {
			again = time.After(recheckInterval)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-again:
			if now, _, err := o.ask(ctx); err == nil && !maps.Equal(now, kinds) {
				return
			}
		}
	}
}

func (o *Objects) ask(ctx context.Context) (map[string]bool, string, error) {
	kinds, err := o.client.servedKinds()
	if err != nil {
		return nil, "", err
	}
	version, err := o.client.CRDVersion(ctx)
	return kinds, version, err
}

func (o *Objects) informer(resource string) (cache.SharedIndexInformer, error) {
	lw := cache.NewListWatchFromClient(o.client.rest, resource, metav1.NamespaceAll, fields.Everything())
	i := cache.NewSharedIndexInformer(lw, exampleTypes[resource], 0, cache.Indexers{})
	if err := i.SetTransform(slimObject); err != nil {
		return nil, err
	}
	_, err := i.AddEventHandler(netinformers.Source{}.Handler(func(any) { o.changed() }))
	return i, err
}

// slimObject removes fields that are not read.
func slimObject(o any) (any, error) {
	if m, ok := o.(metav1.Object); ok {
		m.SetManagedFields(nil)
		if a := m.GetAnnotations(); a[corev1.LastAppliedConfigAnnotation] != "" {
			a = maps.Clone(a)
			delete(a, corev1.LastAppliedConfigAnnotation)
			m.SetAnnotations(a)
		}
	}
	return o, nil
}

// State returns the current objects, and whether they are complete. They are incomplete during their first list. If the
// cluster does not use the Gateway API, the state is complete and empty. The objects are shared and must not be
// changed.
func (o *Objects) State(use Use) (s gateway.State, complete bool) {
	f := o.current.Load()
	if f == nil {
		return s, !use.Used()
	}
	s.CRDVersion = f.version
	s.Classes = objectsOf(f, Classes, s.Classes)
	s.Gateways = objectsOf(f, Gateways, s.Gateways)
	s.ListenerSets = objectsOf(f, ListenerSets, s.ListenerSets)
	s.HTTPRoutes = objectsOf(f, HTTPRoutes, s.HTTPRoutes)
	s.GRPCRoutes = objectsOf(f, GRPCRoutes, s.GRPCRoutes)
	s.TLSRoutes = objectsOf(f, TLSRoutes, s.TLSRoutes)
	s.Grants = objectsOf(f, Grants, s.Grants)
	s.Policies = objectsOf(f, Policies, s.Policies)
	return s, true
}

func objectsOf[T any](f *followedKinds, resource string, out []T) []T {
	i := f.informers[resource]
	if i == nil {
		return nil
	}
	for _, o := range i.GetStore().List() {
		if t, ok := o.(T); ok {
			out = append(out, t)
		}
	}
	return out
}
