// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/controllers/definition"
	"github.com/coracle-k8s/coracle/controllers/servicelb/addresspool"
	"github.com/coracle-k8s/coracle/controllers/term"
)

// poolObjects are the cluster's AddressPools. They have an informer of their own, since it cannot list before the kind
// is defined.
type poolObjects struct {
	client   dynamic.Interface
	log      *slog.Logger
	informer cache.SharedIndexInformer
	synced   cache.InformerSynced
	absent   atomic.Bool // the kind does not exist, and so no AddressPool
}

func newPoolObjects(client dynamic.Interface, log *slog.Logger, changed cache.ResourceEventHandler) (*poolObjects, error) {
	o := &poolObjects{client: client, log: log}
	o.informer = dynamicinformer.NewFilteredDynamicInformer(client, addresspool.Resource(), metav1.NamespaceAll, 0, cache.Indexers{},
		nil).Informer()
	if err := o.informer.SetTransform(term.Trim); err != nil {
		return nil, err
	}
	r, err := o.informer.AddEventHandler(changed)
	if err != nil {
		return nil, err
	}
	o.synced = r.HasSynced
	return o, nil
}

// ready reports whether the AddressPools are known. Before that no address may be allocated or removed.
func (o *poolObjects) ready() bool { return o.absent.Load() || o.synced() }

// run defines the kind and watches its objects until ctx is done.
func (o *poolObjects) run(ctx context.Context) {
	definition.UntilDone(ctx, o.log, "load balancer: AddressPools cannot be used yet; it is tried again", func() error {
		err := addresspool.Kind().Define(ctx, o.client)
		if err == nil {
			return nil
		}
		if there, asked := addresspool.Kind().Defined(ctx, o.client); asked == nil && !there {
			o.absent.Store(true)
		}
		return err
	})
	if ctx.Err() == nil {
		o.informer.RunWithContext(ctx)
	}
}

// removeKind removes the kind, unless there are objects of it.
func removeKind(ctx context.Context, client dynamic.Interface, log *slog.Logger) {
	definition.UntilDone(ctx, log, "load balancer: the definition of AddressPools cannot be removed yet; it is tried again", func() error {
		left, err := addresspool.Kind().Remove(ctx, client)
		if left > 0 {
			log.Info("load balancer: it is disabled, and the definition of AddressPools stays for the sake of those that there are",
				"pools", left)
		}
		return err
	})
}

func (o *poolObjects) list() []*unstructured.Unstructured {
	var out []*unstructured.Unstructured
	for _, item := range o.informer.GetStore().List() {
		if u, ok := item.(*unstructured.Unstructured); ok {
			out = append(out, u)
		}
	}
	return out
}

func (o *poolObjects) pools() ([]*addresspool.AddressPool, error) {
	var out []*addresspool.AddressPool
	for _, u := range o.list() {
		p, err := addresspool.From(u)
		if err != nil { // never: the API server has validated it
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func (o *poolObjects) write(ctx context.Context, want map[string]addresspool.Status) error {
	for _, u := range o.list() {
		p, err := addresspool.From(u)
		if err != nil {
			return err
		}
		status, known := want[p.Name]
		if !known || apiequality.Semantic.DeepEqual(p.Status, status) {
			continue
		}
		changed, err := addresspool.WithStatus(u, status)
		if err != nil {
			return err
		}
		if _, err := o.client.Resource(addresspool.Resource()).UpdateStatus(ctx, changed, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("writing the status of the AddressPool %s: %w", p.Name, err)
		}
	}
	return nil
}

// objectMatters reports whether an AddressPool has changed in more than its status.
func objectMatters(old, now any) bool {
	a, was := old.(*unstructured.Unstructured)
	b, is := now.(*unstructured.Unstructured)
	return !was || !is || !apiequality.Semantic.DeepEqual(a.Object["spec"], b.Object["spec"])
}
