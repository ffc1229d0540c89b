// SPDX-License-Identifier: Apache-2.0

// Package term holds the resources that the scheduler and the controllers share for one term of Raft leadership:
// clients on the API server's in-memory loopback, one set of informers, and a count of all goroutines that the term
// started.
//
// It owns the informers. They are made when the term begins, run during the term, and have ended when Run returns, so
// that a second term in the same process starts with none. It does not share the API server's own informers, and takes
// no part in elections.
package term

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/utils/buffer"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

const (
	// resyncInterval is upstream's --min-resync-period. Informers take one to two times that.
	resyncInterval = 12 * time.Hour
	// defaultTimeout is how long Run waits for goroutines after the context is done.
	defaultTimeout = 20 * time.Second
)

// Options are the options of a term.
type Options struct {
	// Config is a client configuration with all permissions, best over the in-memory loopback. It is copied.
	Config *rest.Config
	// Number is the Raft term, for messages.
	Number uint64
	// EndTimeout limits the wait for goroutines after the end of the term; 20 s when zero.
	EndTimeout time.Duration
}

// Term holds the shared resources of one term of leadership.
type Term struct {
	// Config is a copy of the given one. Goroutines on the server's side of its connections are not counted as the
	// term's.
	Config *rest.Config
	// Client has the permissions of Config. Informers use it. Writers make clients of their own from Config.
	Client kubernetes.Interface
	// Metadata reads the metadata of any resource, including custom ones.
	Metadata metadata.Interface
	// Informers and MetadataInformers are shared by all parts. A part requests the informers that it needs, and then
	// calls StartInformers. It never starts them itself before that. Run stops them.
	Informers         informers.SharedInformerFactory
	MetadataInformers metadatainformer.SharedInformerFactory

	number     uint64
	endTimeout time.Duration
	tally      *tally
	building   atomic.Int32  // parts that have yet to call StartInformers
	started    chan struct{} // closed when building is 0
}

// Part is a function that runs for a term. It returns when its context is done and its own goroutines have ended.
type Part func(context.Context, *Term) error

// Run makes a term and runs its parts concurrently until ctx is done or one of them fails. It returns when all
// goroutines that they started have ended. The error is nil after a normal end. ErrStragglers says that goroutines
// continued after the wait: then no new term may begin in this process.
func Run(ctx context.Context, o Options, parts ...Part) error {
	t, ctx, err := newTerm(ctx, o)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	t.building.Store(int32(len(parts)))
	var wg sync.WaitGroup
	errs := make([]error, len(parts))
	for i, part := range parts {
		wg.Go(func() {
			defer cancel() // a term needs all its parts
			pprof.SetGoroutineLabels(ctx)
			errs[i] = part(ctx, t)
		})
	}
	<-ctx.Done()
	ended := time.Now()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		wg.Wait()
		t.Informers.Shutdown()
		t.MetadataInformers.Shutdown()
	}()
	select {
	case <-stopped:
	case <-time.After(t.endTimeout):
		// The parts may still write errs. The stacks show what they are doing.
		if _, err := t.tally.wait(0); err != nil {
			return err
		}
		return fmt.Errorf("%w: a part or the informers had not ended after %s", ErrStragglers, t.endTimeout)
	}
	inert, err := t.tally.wait(t.endTimeout)
	klog.FromContext(ctx).Info("Term of leadership ended", "term", t.number,
		"stop", time.Since(ended).Round(time.Microsecond), "inertGoroutinesLeft", inert)
	return errors.Join(append(errs, err)...)
}

// StartInformers has to be called by each part once it has built everything that uses informers. It returns true when
// the informers run, which is when every part has called it. It returns false when the term ended before. Upstream
// relies on this: its constructors register handlers of incomplete objects, which crash when an event arrives early.
func (t *Term) StartInformers(ctx context.Context) bool {
	if t.building.Add(-1) == 0 {
		if err := emptyBuffers(t.Informers); err != nil {
			klog.FromContext(ctx).Error(err, "Informers keep buffers of upstream's size")
		}
		t.Informers.StartWithContext(ctx)
		t.MetadataInformers.Start(ctx.Done())
		close(t.started)
	}
	select {
	case <-t.started:
		return true
	case <-ctx.Done():
		return false
	}
}

// emptyBuffers makes the listeners of informers that do not run yet begin with empty buffers in place of upstream's
// 1,024 entries, which are 16 KB each (docs/memory.md). A buffer still grows as needed.
func emptyBuffers(factory informers.SharedInformerFactory) error {
	all, err := kubecompat.Field[map[reflect.Type]cache.SharedIndexInformer](factory, []string{"informers"})
	if err != nil {
		return err
	}
	wrapped := []string{"SharedIndexInformer"}
	for _, informer := range *all {
		var inner any = informer
		for next, err := kubecompat.FieldOf(inner, wrapped); err == nil; next, err = kubecompat.FieldOf(inner, wrapped) {
			inner = next
		}
		listeners, err := kubecompat.FieldOf(inner, []string{"processor", "listeners"})
		if err != nil {
			return err
		}
		for _, listener := range listeners.MapKeys() {
			pending, err := kubecompat.Field[buffer.TypedRingGrowing[any]](listener, []string{"pendingNotifications"})
			if err != nil {
				return err
			}
			*pending = buffer.TypedRingGrowing[any]{}
		}
	}
	return nil
}

// newTerm makes the term's clients and informers. It returns the context in which the term's parts have to run.
func newTerm(ctx context.Context, o Options) (*Term, context.Context, error) {
	if o.Config == nil {
		return nil, nil, errors.New("term: no client configuration given")
	}
	t := &Term{number: o.Number, endTimeout: o.EndTimeout, started: make(chan struct{})}
	t.endTimeout = cmp.Or(t.endTimeout, defaultTimeout)
	t.tally, ctx = newTally(ctx)
	t.Config = rest.CopyConfig(o.Config)
	t.Config.Wrap(t.tally.exempt)
	t.Config.DisableCompression = true
	if t.Config.ContentType == "" {
		t.Config.ContentType = runtime.ContentTypeProtobuf
		t.Config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	}

	var err error
	if t.Client, err = kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(t.Config), "shared-informers")); err != nil {
		return nil, nil, fmt.Errorf("term: make the client for informers: %w", err)
	}
	if t.Metadata, err = metadata.NewForConfig(rest.AddUserAgent(rest.CopyConfig(t.Config), "metadata-informers")); err != nil {
		return nil, nil, fmt.Errorf("term: make the metadata client: %w", err)
	}
	name, err := cache.NewInformerName("kube-controller-manager")
	if err != nil {
		return nil, nil, fmt.Errorf("term: the previous term still holds its informers: %w", err)
	}
	// Shutdown of the factory releases the name.
	t.Informers = informers.NewSharedInformerFactoryWithOptions(t.Client, resyncInterval,
		informers.WithTransform(Trim), informers.WithInformerName(name))
	t.MetadataInformers = metadatainformer.NewSharedInformerFactoryWithOptions(t.Metadata, resyncInterval,
		metadatainformer.WithTransform(Trim))
	return t, ctx, nil
}

// NewMetadataInformer makes an informer of any resource's metadata. It is not shared: the caller runs and ends it.
func (t *Term) NewMetadataInformer(gvr schema.GroupVersionResource) informers.GenericInformer {
	i := metadatainformer.NewFilteredMetadataInformer(t.Metadata, gvr, metav1.NamespaceAll, resyncInterval,
		cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}, nil)
	_ = i.Informer().SetTransform(Trim) // fails only on an informer that runs
	return i
}

// Trim removes managed fields before an object enters an informer's store. No part reads them, and they are often the
// larger half of an object.
func Trim(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil && m.GetManagedFields() != nil {
		m.SetManagedFields(nil)
	}
	return obj, nil
}
