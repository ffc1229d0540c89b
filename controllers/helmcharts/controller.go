// SPDX-License-Identifier: Apache-2.0

package helmcharts

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/coracle-k8s/coracle/controllers/definition"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/kinds"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// gatherDelay is how long a round waits for further changes.
	gatherDelay = 50 * time.Millisecond
	// retryDelay is the wait after a failed request before the chart is tried again.
	retryDelay = 2 * time.Second
	// AtOnce is the greatest number of running children. The last slot is only for charts whose releases have to
	// change. Checking the objects of deployed releases can wait.
	AtOnce = 2
	// firstCheck is the latest time after the beginning of a term for the first check of a chart's objects, for charts
	// that request checks.
	firstCheck = 10 * time.Minute
)

// Engine executes a request. The error is for failures that are not caused by the chart.
type Engine func(context.Context, *helmjob.Request) (*helmjob.Result, error)

// All fields of Options are required, except Folders, Server, FilesEvery, MinCheckPeriod, FirstWait, Disabled, Wanted,
// Part and Logger.
type Options struct {
	// Client, Dynamic and Metadata read and write. Informers are the term's, and are started after New.
	Client    kubernetes.Interface
	Dynamic   dynamic.Interface
	Metadata  metadata.Interface
	Informers informers.SharedInformerFactory
	Recorder  record.EventRecorder
	Engine    Engine
	// Folders are the folders with the files of charts that are named by file.
	Folders []string
	// Server is this server's name, for messages.
	Server string
	// FilesEvery is the interval of checks of these files; 15 s when zero.
	FilesEvery time.Duration
	// MinCheckPeriod is the shortest time that the annotation ReconcileEvery may have; 1 min when zero.
	MinCheckPeriod time.Duration
	// FirstWait is the pause after a first failure; 5 s when zero.
	FirstWait time.Duration
	// Disabled removes the finalizers from all charts. It removes the kinds if there are no objects of them.
	Disabled bool
	// Wanted, when it delivers a value, makes the kinds be defined at once, and not only when a node is ready. nil is
	// for never.
	Wanted <-chan struct{}
	// Part is the status line.
	Part   *status.Part
	Logger *slog.Logger
}

// Controller keeps charts installed, for one term.
type Controller struct {
	o          Options
	log        *slog.Logger
	reader     reader
	objects    *objects
	watches    *watches
	namespaces corelisters.NamespaceLister
	synced     []cache.InformerSynced

	wake     timers.Signal   // an object or a file has to be checked
	outcomes chan workResult // capacity AtOnce, so that the end of a child does not wait for the loop

	entries  map[types.NamespacedName]*entry // owned by the loop
	running  int                             // running children
	checks   int                             // of these, those that check the objects of a deployed release
	sealed   []byte                          // the key that seals records of releases, once it was read
	children sync.WaitGroup
}

// New adds handlers to the term's informers, which must not run yet.
func New(o Options) (*Controller, error) {
	if o.Client == nil || o.Dynamic == nil || o.Metadata == nil || o.Informers == nil || o.Recorder == nil || o.Engine == nil {
		return nil, errors.New("helmcharts: Client, Dynamic, Metadata, Informers, Recorder and Engine are required")
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	o.FirstWait = cmp.Or(o.FirstWait, firstWait)
	o.FilesEvery = cmp.Or(o.FilesEvery, filesEvery)
	o.MinCheckPeriod = cmp.Or(o.MinCheckPeriod, time.Minute)
	core := o.Informers.Core().V1()
	c := &Controller{
		o: o, log: o.Logger, reader: reader{client: o.Client, files: &files{folders: o.Folders, read: map[string]cachedSum{}},
			server: o.Server, minCheckPeriod: o.MinCheckPeriod}, namespaces: core.Namespaces().Lister(),
		wake: timers.NewSignal(), outcomes: make(chan workResult, AtOnce),
		entries: map[types.NamespacedName]*entry{},
	}
	if o.Disabled {
		return c, nil
	}
	var err error
	if c.objects, err = newObjects(o.Dynamic, c.wake.Send); err != nil {
		return nil, fmt.Errorf("helmcharts: listening to HelmCharts: %w", err)
	}
	c.watches = newWatches(o.Metadata, c.wake.Send)
	c.synced, err = netinformers.Follow(func(any) { c.wake.Send() }, netinformers.Source{
		Informer: core.Namespaces().Informer(), Matters: func(old, now any) bool {
			a, was := old.(*corev1.Namespace)
			b, is := now.(*corev1.Namespace)
			return !was || !is || (a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("helmcharts: %w", err)
	}
	c.synced = append(c.synced, core.Nodes().Informer().HasSynced)
	return c, nil
}

// Run keeps charts installed until ctx is done. When it returns, no child runs any more.
func (c *Controller) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer c.children.Wait()
	defer cancel()
	if c.o.Disabled {
		c.o.Part.Set(status.Disabled, "")
		c.releaseCharts(ctx)
		<-ctx.Done()
		return nil
	}
	c.o.Part.Set(status.Running, "")
	if !cache.WaitForCacheSync(ctx.Done(), c.synced...) ||
		!definition.AwaitTurn(ctx, c.o.Informers.Core().V1().Nodes().Informer(), c.o.Wanted) {
		return nil
	}
	c.define(ctx)
	defer c.watches.stop()
	beside.Go(func() { c.objects.run(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), c.objects.synced...) {
		return nil
	}
	c.loop(ctx)
	return nil
}

// loop runs rounds until ctx is done.
func (c *Controller) loop(ctx context.Context) {
	for {
		next := c.checkCharts(ctx)
		var again <-chan time.Time
		if !next.IsZero() {
			again = time.After(max(0, time.Until(next)))
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		case o := <-c.outcomes:
			c.recordResult(ctx, o)
		case <-c.wake:
			if !timers.Sleep(ctx, gatherDelay) {
				return
			}
		}
	}
}

// define defines both kinds in the cluster.
func (c *Controller) define(ctx context.Context) {
	definition.UntilDone(ctx, c.log, "Helm charts cannot be used yet; it is tried again", func() error {
		return errors.Join(kinds.Charts().Define(ctx, c.o.Dynamic), kinds.Configs().Define(ctx, c.o.Dynamic))
	})
}

// reportStatus sets the status line: how many charts have failed or lack their files.
func (c *Controller) reportStatus() {
	failed, lacking := 0, 0
	for _, e := range c.entries {
		switch {
		case e.unhealthy:
			failed++
		case e.missing != "":
			lacking++
		}
	}
	switch n := len(c.entries); {
	case n == 0:
		c.o.Part.Set(status.Running, "")
	case failed > 0:
		c.o.Part.Set(status.Running, fmt.Sprintf("%d of %d charts are not installed as they should be: kubectl describe helmchart says why",
			failed, n))
	case lacking > 0:
		c.o.Part.Set(status.Running, fmt.Sprintf("this server lacks the files of %d of %d charts, which stay as they are: kubectl "+
			"describe helmchart says which", lacking, n))
	case n == 1:
		c.o.Part.Set(status.Running, "1 chart")
	default:
		c.o.Part.Set(status.Running, fmt.Sprintf("%d charts", n))
	}
}
