// SPDX-License-Identifier: Apache-2.0

// Package resourcemetrics serves the metrics.k8s.io API: the CPU and memory use of nodes and pods, for `kubectl top`
// and autoscalers.
//
// It requests figures from kubelets, and keeps the newest in memory, only while there are clients: an autoscaler, or a
// user within the last minutes. The first request of such a period waits for the first responses. Each server requests
// figures itself, so that clients can use any server. The form of the API and the decoding of kubelets' counters are
// metrics-server's own code.
//
// The package never writes an object and holds no informers. It accepts from a kubelet only figures of its own node and
// of the pods that run there.
//
// Its goroutines: the loop that asks kubelets, asleep while no figures are asked for; 32 kubelets at a time, 12 s each
// at most, every 15 s; with --metrics-history all kubelets, every minute of a term.
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
	// roundInterval is how often kubelets are queried: as often as an autoscaler requests metrics. Kubelets measure on
	// request, at most every 10 s.
	roundInterval = 15 * time.Second
	// interestTime is how long kubelets are queried after the last request of a client.
	interestTime = 5 * time.Minute
)

// GroupVersion is the API version that Install serves.
var GroupVersion = v1beta1.SchemeGroupVersion

// All fields of Options are required, except Part and Logger.
type Options struct {
	Nodes corelisters.NodeLister
	Pods  corelisters.PodLister
	// Namespaces is read only for a history.
	Namespaces corelisters.NamespaceLister
	// Transport connects to kubelets, with a certificate that may read metrics.
	Transport http.RoundTripper
	// AddressTypes is the order in which a node's addresses are preferred.
	AddressTypes []corev1.NodeAddressType
	// Part, when set, shows the collector's state.
	Part   *status.Part
	Logger *slog.Logger
}

// Collector keeps the figures while clients request them.
type Collector struct {
	o        Options
	kubelets *kubelets
	done     chan struct{} // closed when Run has ended
	wake     timers.Signal // sent when a client requests figures; Run receives it

	mu          sync.Mutex
	lastRequest time.Time
	// firstReady is closed when the first figures exist. It is nil while no client requests any.
	firstReady chan struct{}
	current    *figures // nil until then
	// otherProvider is the Service that serves the API instead of this collector.
	otherProvider string
	// history is nil while none is kept.
	history *history
}

var _ api.MetricsGetter = (*Collector)(nil)

// New returns a Collector. Run has to be called.
func New(o Options) (*Collector, error) {
	o.Logger = cmp.Or(o.Logger, slog.Default())
	k, err := newKubelets(o.Transport, o.AddressTypes)
	if err != nil {
		return nil, err
	}
	c := &Collector{o: o, kubelets: k, done: make(chan struct{}), wake: timers.NewSignal()}
	c.showStatus()
	return c, nil
}

// Install adds the API to a server that has not been started yet.
func (c *Collector) Install(server *genericapiserver.GenericAPIServer) error {
	// The types include version v1, which is not served. The group's preferred version must be served.
	if err := api.Scheme.SetVersionPriority(v1beta1.SchemeGroupVersion, v1.SchemeGroupVersion); err != nil {
		return fmt.Errorf("ordering the versions of metrics.k8s.io: %w", err)
	}
	if err := api.Install(c, runningPods{c.o.Pods}, c.o.Nodes, server, nil); err != nil {
		return fmt.Errorf("installing metrics.k8s.io: %w", err)
	}
	return nil
}

// SetOtherProvider sets the Service (NAMESPACE/NAME) that serves the API instead of this collector, empty for none.
func (c *Collector) SetOtherProvider(service string) {
	c.mu.Lock()
	c.otherProvider = service
	c.mu.Unlock()
	c.showStatus()
}

// Run requests figures from kubelets while clients request them, until ctx is done. It may be called once.
func (c *Collector) Run(ctx context.Context) {
	defer close(c.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
			c.collect(ctx)
		}
	}
}

// collect runs rounds until no client has requested figures for a while.
func (c *Collector) collect(ctx context.Context) {
	ticker := time.NewTicker(roundInterval)
	defer ticker.Stop()
	var f *figures
	whole := make(chan struct{}) // closed when the first round is over
	over := sync.OnceFunc(func() { close(whole) })
	for {
		f = c.collectOnce(ctx, f, func(early *figures) {
			if f == nil {
				early.roundDone = whole
			}
			c.publish(early)
		})
		if ctx.Err() != nil {
			return // waiting clients are woken by ended
		}
		c.publish(f)
		over()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if c.dropUnused() {
			c.showStatus()
			return
		}
	}
}

// publish makes f the current figures. It writes the status before it wakes clients that wait for the first figures.
func (c *Collector) publish(f *figures) {
	c.mu.Lock()
	defer c.mu.Unlock()
	began := c.current == nil
	c.current = f
	c.showLocked()
	if began {
		close(c.firstReady)
	}
}

// dropUnused drops the figures when no client has requested them for a while. It says whether it did.
func (c *Collector) dropUnused() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.lastRequest) < interestTime {
		return false
	}
	c.current, c.firstReady = nil, nil
	return true
}

var errStopping = errors.New("this server is stopping")

// latest returns the newest figures. The first request waits for them, at most for the time kubeletWait.
func (c *Collector) latest() (*figures, error) {
	for {
		now, first := c.noteRequest()
		if now != nil {
			return now, nil
		}
		select {
		case <-first:
		case <-c.done:
			return nil, errStopping
		}
	}
}

// noteRequest records a client's request. It returns the figures, and a channel that is closed when there are some.
func (c *Collector) noteRequest() (*figures, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastRequest = time.Now()
	if c.firstReady == nil {
		c.firstReady = make(chan struct{})
		c.wake.Send()
	}
	return c.current, c.firstReady
}

// collectOnce requests figures from all kubelets once. It passes the figures so far to early when some kubelets are
// slow.
func (c *Collector) collectOnce(ctx context.Context, before *figures, early func(*figures)) *figures {
	nodes, err := c.o.Nodes.List(labels.Everything())
	if err != nil {
		c.o.Logger.Warn("metrics: nodes cannot be listed", "error", err)
	}
	pods, err := c.o.Pods.List(labels.Everything())
	if err != nil {
		c.o.Logger.Warn("metrics: pods cannot be listed", "error", err)
	}
	after := c.kubelets.readAll(ctx, nodes, pods, before, early)
	if ctx.Err() == nil {
		c.logChanges(before, after)
	}
	return after
}

// logChanges logs which kubelets have begun or stopped to answer.
func (c *Collector) logChanges(before, after *figures) {
	for node, err := range after.failed {
		if before == nil || before.failed[node] == nil {
			c.o.Logger.Warn("metrics: a kubelet does not answer; there are no figures of its node and pods until it does", "node", node,
				"error", err)
		}
	}
	for node, impossible := range after.impossible {
		if before == nil || before.impossible[node] == "" {
			c.o.Logger.Warn("metrics: a kubelet reports impossible figures; they are ignored", "node", node, "example", impossible)
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
