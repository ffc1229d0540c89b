// SPDX-License-Identifier: Apache-2.0

// Package resourcemetrics is the metrics.k8s.io API: what nodes and pods use, for `kubectl top` and autoscalers.
//
// It asks kubelets, and keeps their newest figures in memory, only while a client asks for them: an autoscaler, or a
// person within the last minutes. The first question of such a time waits for the first answers. Each server asks by
// itself, so that any of them can be asked. The form of the API, and how kubelets' counters are read, is
// metrics-server's own code.
//
// The package never writes an object and holds no informers. It believes a kubelet about its own node and the pods
// that run there, and nothing else.
package resourcemetrics

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	genericapiserver "k8s.io/apiserver/pkg/server"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/metrics/pkg/apis/metrics/v1"
	"k8s.io/metrics/pkg/apis/metrics/v1beta1"
	"sigs.k8s.io/metrics-server/pkg/api"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// period is how often kubelets are asked: as often as an autoscaler looks. Kubelets measure when they are
	// asked, at most every 10 s.
	period = 15 * time.Second
	// interest is how long they are asked after the last question.
	interest = 5 * time.Minute
)

// GroupVersion is what Install serves.
var GroupVersion = v1beta1.SchemeGroupVersion

// Options are all required but Part and Logger.
type Options struct {
	Nodes corelisters.NodeLister
	Pods  corelisters.PodLister
	// Transport connects to kubelets, with a certificate that lets it ask for metrics.
	Transport http.RoundTripper
	// AddressTypes says which of a node's addresses is used, the best first.
	AddressTypes []corev1.NodeAddressType
	// Part, when set, shows how it goes.
	Part   *status.Part
	Logger *slog.Logger
}

// Collector has the figures while a client asks for them.
type Collector struct {
	o        Options
	kubelets *kubelets
	ended    chan struct{} // closed when Run has ended
	wake     timers.Signal // its receiver looks whether a client has asked

	mu    sync.Mutex
	asked time.Time
	// first is closed when the first figures are there; nil while no client asks.
	first chan struct{}
	now   *figures // nil until then
	// otherProvider is the Service that answers in this one's place.
	otherProvider string
}

var _ api.MetricsGetter = (*Collector)(nil)

// New makes a Collector that Run runs.
func New(o Options) (*Collector, error) {
	o.Logger = cmp.Or(o.Logger, slog.Default())
	k, err := newKubelets(o.Transport, o.AddressTypes)
	if err != nil {
		return nil, err
	}
	c := &Collector{o: o, kubelets: k, ended: make(chan struct{}), wake: timers.NewSignal()}
	c.show()
	return c, nil
}

// Install serves the API from a server that has not been started yet.
func (c *Collector) Install(server *genericapiserver.GenericAPIServer) error {
	// Version v1 is known to the types and not served: the group's preferred version must be one that is.
	if err := api.Scheme.SetVersionPriority(v1beta1.SchemeGroupVersion, v1.SchemeGroupVersion); err != nil {
		return fmt.Errorf("ordering the versions of metrics.k8s.io: %w", err)
	}
	if err := api.Install(c, runningPods{c.o.Pods}, c.o.Nodes, server, nil); err != nil {
		return fmt.Errorf("installing metrics.k8s.io: %w", err)
	}
	return nil
}

// SetOtherProvider notes which Service (NAMESPACE/NAME) answers for the API in this one's place; empty for none.
func (c *Collector) SetOtherProvider(service string) {
	c.mu.Lock()
	c.otherProvider = service
	c.mu.Unlock()
	c.show()
}

// Run asks kubelets while a client asks for their figures, until ctx is done. It may be called once.
func (c *Collector) Run(ctx context.Context) {
	defer close(c.ended)
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
			c.collect(ctx)
		}
	}
}

// collect asks until no client has asked for a while.
func (c *Collector) collect(ctx context.Context) {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	var f *figures
	whole := make(chan struct{}) // closed when the first round is over
	over := sync.OnceFunc(func() { close(whole) })
	for {
		f = c.round(ctx, f, func(early *figures) {
			if f == nil {
				early.rest = whole
			}
			c.publish(early)
		})
		if ctx.Err() != nil {
			return // those who wait are woken by ended
		}
		c.publish(f)
		over()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if c.rest() {
			c.show()
			return
		}
	}
}

// publish makes figures the ones that are answered with, and says so in the status before those who wait for the first
// go on.
func (c *Collector) publish(f *figures) {
	c.mu.Lock()
	defer c.mu.Unlock()
	began := c.now == nil
	c.now = f
	c.showLocked()
	if began {
		close(c.first)
	}
}

// rest drops the figures when no client has asked for a while.
func (c *Collector) rest() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.asked) < interest {
		return false
	}
	c.now, c.first = nil, nil
	return true
}

var errStopping = errors.New("this server is stopping")

// ask returns the newest figures. The first who asks waits for them, for as long as the patience at most.
func (c *Collector) ask() (*figures, error) {
	for {
		now, first := c.asking()
		if now != nil {
			return now, nil
		}
		select {
		case <-first:
		case <-c.ended:
			return nil, errStopping
		}
	}
}

// asking notes that a client asks. It returns the figures, or what is closed when there are some.
func (c *Collector) asking() (*figures, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = time.Now()
	if c.first == nil {
		c.first = make(chan struct{})
		c.wake.Send()
	}
	return c.now, c.first
}

// round asks all kubelets once. What there is when some of them are slow goes to early.
func (c *Collector) round(ctx context.Context, before *figures, early func(*figures)) *figures {
	nodes, err := c.o.Nodes.List(labels.Everything())
	if err != nil {
		c.o.Logger.Warn("metrics: nodes cannot be listed", "error", err)
	}
	pods, err := c.o.Pods.List(labels.Everything())
	if err != nil {
		c.o.Logger.Warn("metrics: pods cannot be listed", "error", err)
	}
	after := c.kubelets.round(ctx, nodes, pods, before, early)
	if ctx.Err() == nil {
		c.logChanges(before, after)
	}
	return after
}

// logChanges logs which kubelets have begun or ceased to answer.
func (c *Collector) logChanges(before, after *figures) {
	for node, err := range after.failed {
		if before == nil || before.failed[node] == nil {
			c.o.Logger.Warn("metrics: a kubelet does not answer; there are no figures of its node and pods until it does", "node", node,
				"error", err)
		}
	}
	for node, odd := range after.odd {
		if before == nil || before.odd[node] == "" {
			c.o.Logger.Warn("metrics: a kubelet says what cannot be; those figures are left out", "node", node, "example", odd)
		}
	}
	if before == nil {
		return
	}
	for node := range before.failed {
		if _, ok := after.nodes[node]; ok {
			c.o.Logger.Info("metrics: a kubelet answers again", "node", node)
		}
	}
}
