// SPDX-License-Identifier: Apache-2.0

// Package ingress sends nodes the tables by which their ingress proxies route: ingress/compile makes a table of the
// cluster's objects, and each node gets it in one stream.
//
// Every server does so for the nodes that are connected to it. It watches the objects only while a node has a stream,
// once for all nodes, and writes nothing. Certificates with their keys are part of the table, so only nodes may request
// it.
//
// Its goroutines: one that watches what the table is compiled from while a node follows it; one watch for each kind.
package ingress

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/metrics"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/server/routine"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"

	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// leastStream is the shortest duration of a stream. The longest is twice that, as with client-go's watches.
	leastStream = 5 * time.Minute
	// beginWithin limits the time until a stream's first table.
	beginWithin = 10 * time.Second
	// linger is how long objects are watched after the last stream has ended: nodes reconnect.
	linger = time.Minute
	// gather is how long further changes are awaited after an object has changed.
	gather = 20 * time.Millisecond
)

// nodePrefix is the prefix of the names of nodes' users.
const nodePrefix = "system:node:"

// Options are the parameters of New.
type Options struct {
	// Client must be allowed to read Ingresses, IngressClasses, Secrets, ConfigMaps, Services and Namespaces.
	Client kubernetes.Interface
	// Metadata must be allowed to list and watch Secrets and ConfigMaps.
	Metadata metadata.Interface
	// Rules are the rules by which Ingresses are compiled.
	Rules compile.Rules
	// NoIngress leaves Ingresses out.
	NoIngress bool
	// Gateways is the source of the objects of the Gateway API. Nil leaves them out.
	Gateways *Gateways
	Logger   *slog.Logger
}

// Tables is the handler of table.Path.
type Tables struct {
	o     Options
	lasts func() time.Duration
	asked timers.Signal // sent when a stream has begun or ended

	mu      sync.Mutex
	streams int
	ready   bool // now is complete, and the objects are watched
	now     table.Sections
	changed chan struct{} // closed when now or ready changes
}

// New returns a handler. Run has to be called.
func New(o Options) *Tables {
	return &Tables{
		o: o, lasts: func() time.Duration { return leastStream + rand.N(leastStream) }, asked: timers.NewSignal(),
		now: table.Sections{}, changed: make(chan struct{}),
	}
}

// Run watches the objects while nodes have streams, until ctx is done.
func (t *Tables) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.asked:
		}
		if t.count() > 0 {
			t.serve(ctx)
		}
	}
}

// serve watches the objects until there has been no stream for the time linger.
func (t *Tables) serve(ctx context.Context) {
	defer t.drop() // when put is not called any more
	ctx, cancel := context.WithCancel(ctx)
	o := newObjects(t.o)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() { o.run(ctx, t.put) })
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.asked:
		case <-time.After(linger):
			if t.count() == 0 {
				return
			}
		}
	}
}

func (t *Tables) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.streams
}

func (t *Tables) put(s table.Sections) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ready && maps.EqualFunc(s, t.now, func(a, b json.RawMessage) bool { return string(a) == string(b) }) {
		return
	}
	t.now, t.ready = s, true
	close(t.changed)
	t.changed = make(chan struct{})
}

// drop drops the table. The next stream waits for a new one.
func (t *Tables) drop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now, t.ready = table.Sections{}, false
}

func (t *Tables) current() (now table.Sections, ready bool, changed <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.now, t.ready, t.changed
}

// begin counts a stream until end is called.
func (t *Tables) begin() (end func()) {
	add := func(n int) {
		t.mu.Lock()
		t.streams += n
		t.mu.Unlock()
		t.asked.Send()
	}
	add(1)
	return func() { add(-1) }
}

// ServeHTTP implements http.Handler. Like a watch, a stream is served without the stack of the filters that it passed.
func (t *Tables) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if code, why := refuses(r); code != 0 {
		http.Error(w, why, code)
		return
	}
	info, _ := request.RequestInfoFrom(r.Context())
	serve := func() {
		metrics.RecordLongRunning(r, info, metrics.APIServerComponent, func() { t.stream(w, r) })
	}
	if task := routine.TaskFrom(r.Context()); task != nil {
		task.Func = serve
	} else {
		serve()
	}
}

// refuses returns why a client may not get the table, or code 0. RBAC's permission is not enough: the client has to be
// a node.
func refuses(r *http.Request) (code int, why string) {
	if r.Method != http.MethodGet {
		return http.StatusMethodNotAllowed, "the table of the ingress is read only"
	}
	who, ok := request.UserFrom(r.Context())
	if !ok || !strings.HasPrefix(who.GetName(), nodePrefix) || !slices.Contains(who.GetGroups(), user.NodesGroup) {
		return http.StatusForbidden, "only nodes may ask for the table of the ingress"
	}
	return 0, ""
}

// stream sends the table, and then its changes, until the request ends or the stream's time is over.
func (t *Tables) stream(w http.ResponseWriter, r *http.Request) {
	defer t.begin()()
	flusher, ok := w.(http.Flusher)
	if !ok {
		http.Error(w, "this connection does not support streaming", http.StatusNotImplemented)
		return
	}
	if err := t.await(r.Context()); err != nil {
		http.Error(w, "the table of the ingress is not available on this server yet: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	over := time.NewTimer(t.lasts())
	defer over.Stop()
	w.Header().Set("Content-Type", "application/json")
	sent, first := table.Sections{}, true
	for out := json.NewEncoder(w); ; {
		now, ready, changed := t.current()
		if !ready { // the objects are not watched any more: the node reconnects
			return
		}
		changes := table.Diff(sent, now)
		if first || len(changes) > 0 {
			for _, c := range append(changes, table.Change{Commit: true}) {
				if out.Encode(c) != nil { // the client has ended
					return
				}
			}
			flusher.Flush()
			sent, first = now, false
		}
		select {
		case <-r.Context().Done():
			return
		case <-over.C:
			return
		case <-changed:
		}
	}
}

// await waits for a table, and for a read from the store that a majority confirms: a server that is cut off must not
// send nodes an outdated table.
func (t *Tables) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, beginWithin)
	defer cancel()
	if _, err := t.o.Client.NetworkingV1().IngressClasses().List(ctx, metav1.ListOptions{Limit: 1}); err != nil {
		return err
	}
	for {
		_, ready, changed := t.current()
		if ready {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}
