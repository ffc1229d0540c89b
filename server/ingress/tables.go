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
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"

	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/nodestream"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// lingerTime is how long objects are watched after the last stream has ended: nodes reconnect.
	lingerTime = time.Minute
	// gatherDelay is how long further changes are awaited after an object has changed.
	gatherDelay = 20 * time.Millisecond
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

// Tables is the handler of table.Path. Its state is nil while the objects are not watched.
type Tables struct {
	nodestream.Server[table.Sections]
	o              Options
	streamsChanged timers.Signal // sent when a stream has begun or ended
	streams        atomic.Int32
}

// New returns a handler. Run has to be called.
func New(o Options) *Tables {
	t := &Tables{o: o, streamsChanged: timers.NewSignal()}
	t.Server = nodestream.Server[table.Sections]{Subject: "the table of the ingress", Refusal: refusal, Begin: t.begin, Writer: writer}
	return t
}

// Run watches the objects while nodes have streams, until ctx is done.
func (t *Tables) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.streamsChanged:
		}
		if t.streams.Load() > 0 {
			t.serve(ctx)
		}
	}
}

// serve watches the objects until there has been no stream for lingerTime.
func (t *Tables) serve(ctx context.Context) {
	defer t.State.Set(nil) // when put is not called any more; the next stream waits for a new table
	ctx, cancel := context.WithCancel(ctx)
	o := newObjects(t.o)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() { o.run(ctx, t.setState) })
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.streamsChanged:
		case <-time.After(lingerTime):
			if t.streams.Load() == 0 {
				return
			}
		}
	}
}

func (t *Tables) setState(s table.Sections) {
	if now, _ := t.State.Get(); now == nil || len(table.Diff(now, s)) > 0 {
		t.State.Set(s)
	}
}

// refusal implements nodestream.Server. RBAC's permission is not enough: the client has to be a node.
func refusal(client user.Info, _ *http.Request) (code int, text string) {
	if !strings.HasPrefix(client.GetName(), nodePrefix) || !slices.Contains(client.GetGroups(), user.NodesGroup) {
		return http.StatusForbidden, "only nodes may ask for the table of the ingress"
	}
	return 0, ""
}

// begin implements nodestream.Server. It counts a stream until end is called.
func (t *Tables) begin(ctx context.Context) (end func(), err error) {
	add := func(n int32) {
		t.streams.Add(n)
		t.streamsChanged.Send()
	}
	add(1)
	return func() { add(-1) }, t.await(ctx)
}

// await waits for a table, and for a read from the store that a majority confirms: a server that is cut off must not
// send nodes an outdated table.
func (t *Tables) await(ctx context.Context) error {
	if _, err := t.o.Client.NetworkingV1().IngressClasses().List(ctx, metav1.ListOptions{Limit: 1}); err != nil {
		return err
	}
	for {
		now, changed := t.State.Get()
		if now != nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// errUnwatched ends a stream, so that its node reconnects.
var errUnwatched = errors.New("the objects of the ingress are not watched any more")

// writer implements nodestream.Server.
func writer(*http.Request) func(io.Writer, table.Sections) (bool, error) {
	var sent table.Sections
	return func(to io.Writer, now table.Sections) (written bool, err error) {
		if now == nil {
			return false, errUnwatched
		}
		changes := table.Diff(sent, now)
		if sent != nil && len(changes) == 0 {
			return false, nil
		}
		sent = now
		out := json.NewEncoder(to)
		for _, c := range append(changes, table.Change{Commit: true}) {
			if err := out.Encode(c); err != nil {
				return false, err
			}
		}
		return true, nil
	}
}
