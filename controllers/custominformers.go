// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/controller-manager/pkg/informerfactory"

	"github.com/coracle-k8s/coracle/controllers/term"
)

// unusedFor is the time for which an informer of custom resources is kept after its last monitor. It must only be
// longer than upstream takes from requesting an informer to requesting its controller, which is two lines.
const unusedFor = time.Minute

// customInformers is the informer factory of the garbage collector and the quota controller. Both end their monitor of
// a resource that is no longer served, but upstream's factories never end an informer. For each deleted
// CustomResourceDefinition an informer would go on to fail a list twice a minute, with six goroutines. This factory
// counts running monitors, and ends an informer of custom resources without any.
type customInformers struct {
	ctx     context.Context // the term's
	term    *term.Term
	running sync.WaitGroup

	mu     sync.Mutex
	custom map[schema.GroupVersionResource]*customInformer
}

var _ informerfactory.InformerFactory = &customInformers{}

func newCustomInformers(ctx context.Context, t *term.Term) *customInformers {
	return &customInformers{ctx: ctx, term: t, custom: map[schema.GroupVersionResource]*customInformer{}}
}

// ForResource returns the term's informer of a built-in resource, and an informer of this factory for any other.
func (f *customInformers) ForResource(gvr schema.GroupVersionResource) (informers.GenericInformer, error) {
	if informer, err := f.term.Informers.ForResource(gvr); err == nil {
		return informer, nil
	}
	if slices.Contains(apiSources, gvr) {
		return f.term.MetadataInformers.ForResource(gvr), nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	i := f.custom[gvr]
	if i == nil {
		made := f.term.NewMetadataInformer(gvr)
		i = &customInformer{SharedIndexInformer: made.Informer(), generic: made, factory: f, gvr: gvr}
		f.custom[gvr] = i
	}
	i.lastRequest = time.Now()
	return i, nil
}

// Start runs the informers that do not run yet.
func (f *customInformers) Start(stop <-chan struct{}) {
	f.term.Informers.Start(stop)
	f.term.MetadataInformers.Start(stop)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, i := range f.custom {
		if i.cancel == nil {
			var ctx context.Context
			ctx, i.cancel = context.WithCancel(f.ctx)
			f.running.Go(func() { i.RunWithContext(ctx) })
		}
	}
}

// Wait returns when the informers have ended. They end with the term.
func (f *customInformers) Wait() { f.running.Wait() }

// customInformer is an informer with its users. The factory's mu guards its fields.
type customInformer struct {
	cache.SharedIndexInformer
	generic informers.GenericInformer
	factory *customInformers
	gvr     schema.GroupVersionResource

	monitors    int       // monitors that have its controller and have not ended
	lastRequest time.Time // when it was last requested
	cancel      context.CancelFunc
}

func (i *customInformer) Informer() cache.SharedIndexInformer { return i }
func (i *customInformer) Lister() cache.GenericLister         { return i.generic.Lister() }

// GetController counts a monitor. Both controllers call it once for each monitor, and run the result until the monitor
// ends.
func (i *customInformer) GetController() cache.Controller {
	i.factory.mu.Lock()
	defer i.factory.mu.Unlock()
	i.monitors++
	return &monitoredController{Controller: i.SharedIndexInformer.GetController(), informer: i}
}

// monitoredController is a controller that does nothing, as upstream's for a shared informer. It runs until its monitor
// ends.
type monitoredController struct {
	cache.Controller
	informer *customInformer
}

func (m *monitoredController) Run(stop <-chan struct{}) {
	<-stop
	m.informer.release()
}

func (m *monitoredController) RunWithContext(ctx context.Context) { m.Run(ctx.Done()) }

// release subtracts a monitor. After unusedFor it checks whether the informer is used again.
func (i *customInformer) release() {
	i.factory.mu.Lock()
	defer i.factory.mu.Unlock()
	i.monitors--
	if i.monitors == 0 && i.factory.ctx.Err() == nil {
		time.AfterFunc(unusedFor, i.endUnused)
	}
}

func (i *customInformer) endUnused() {
	f := i.factory
	f.mu.Lock()
	defer f.mu.Unlock()
	if i.monitors > 0 || f.custom[i.gvr] != i {
		return
	}
	if rest := unusedFor - time.Since(i.lastRequest); rest > 0 {
		time.AfterFunc(rest, i.endUnused)
		return
	}
	delete(f.custom, i.gvr)
	if i.cancel != nil {
		i.cancel()
	}
}
