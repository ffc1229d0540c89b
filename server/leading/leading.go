// SPDX-License-Identifier: Apache-2.0

// Package leading does the leader's work for the whole cluster: it runs upstream's controllers and scheduler, and
// ours.
//
// It owns the parts of a term, and starts and stops them on this server. It never decides which server leads: the store
// does.
//
// Its goroutines: one that follows the leadership; for each term its controllers and those that wait for a kind or a
// need. All end with the term.
package leading

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/controllers"
	"github.com/coracle-k8s/coracle/controllers/acme"
	"github.com/coracle-k8s/coracle/controllers/helmcharts"
	"github.com/coracle-k8s/coracle/controllers/ingress"
	"github.com/coracle-k8s/coracle/controllers/localpath"
	"github.com/coracle-k8s/coracle/controllers/servicelb"
	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/scheduler"
	"github.com/coracle-k8s/coracle/server/gatewayuse"
	"github.com/coracle-k8s/coracle/server/liveness"
	"github.com/coracle-k8s/coracle/server/manifests"
	"github.com/coracle-k8s/coracle/server/nodemembers"
)

const (
	// termRetry is how long a leader whose loops failed waits before it starts them again.
	termRetry = 5 * time.Second
	// termDrain limits the wait for requests of a term that has ended. They are cancelled by then.
	termDrain = 10 * time.Second
)

// ErrTermOver ends a term whose writes the store refuses. The term is not started again, since it is over for good.
var ErrTermOver = errors.New("the store refused a write of this term, because another term has begun")

// Options are a server's parameters for the parts. The options of a part lack the fields that the term sets: clients,
// informers, recorders, status lines and loggers.
type Options struct {
	// API is the server's own API server.
	API API
	// Cluster is the settings in which all machines of the cluster agree.
	Cluster     clusterconfig.Settings
	Controllers controllers.Options
	Scheduler   scheduler.Options
	// Volumes sends requests for folders to nodes.
	Volumes localpath.Nodes
	// Manifests without a folder disable that part.
	Manifests manifests.Options
	Liveness  liveness.Options
	// NodeMonitor is set while this server judges nodes.
	Judge *atomic.Pointer[liveness.NodeMonitor]
	// Members are the members of the store.
	Members   nodemembers.Members
	ServiceLB servicelb.Options
	// Port is the servers' port. LBReserved are further ports that no Service gets at nodes' addresses
	// (loadbalancer.ParsePorts). NodePortRange is FIRST-LAST.
	Port          int
	LBReserved    []string
	NodePortRange string
	Ingress       ingress.Options
	// ACME orders certificates of Ingresses if it has an e-mail address.
	ACME acme.Options
	// MetricsHistory, when set, keeps a history of metrics until its context is done.
	MetricsHistory func(context.Context)
	// OwnsAddress says whether an address belongs to the cluster.
	OwnsAddress func(corelisters.NodeLister, netip.Addr) bool
	GatewayUse  *gatewayuse.Use
	Helm        helmcharts.Options
	// HelmEngine starts the child processes that run Helm.
	HelmEngine helmcharts.ChildEngine
	// Part, when set, shows whether this server leads. Board, when set, has a line for each part with a status.
	Part   *status.Part
	Board  *status.Board
	Logger *slog.Logger
}

// API returns a client configuration for one term, and a function that ends it.
type API interface {
	TermConfig(mark func(context.Context) context.Context) (*rest.Config, func(context.Context) error)
}

// Leader runs the parts while this server leads.
type Leader struct {
	o Options
	// helmWanted and gatewayWanted are sent when a user has an object of the kinds of Helm charts or of the Gateway
	// API.
	helmWanted, gatewayWanted timers.Signal
	// refusals are the claims for which nodes refused a local volume. The scheduler reads them.
	refusals *localpath.Refusals
}

// New returns a Leader. It starts nothing.
func New(o Options) *Leader {
	return &Leader{o: o, helmWanted: timers.NewSignal(), gatewayWanted: timers.NewSignal(), refusals: localpath.NewRefusals(time.Now)}
}

// Follow starts the loops when this server begins to lead, and stops them when it ceases to lead, until ctx is done. It
// returns false if the store was closed before. No loop runs any more when it returns. It calls fatal when this process
// must not begin another term.
func (l *Leader) Follow(ctx context.Context, fatal context.CancelCauseFunc, leadership <-chan raftstore.Leadership) bool {
	return l.follow(ctx, fatal, leadership, func(ctx context.Context, number uint64) error {
		return RunTerm(ctx, l.o.API, l.o.Logger, number, l.parts()...)
	})
}

// follow runs one term after the other, never two concurrently.
func (l *Leader) follow(ctx context.Context, fatal context.CancelCauseFunc, leadership <-chan raftstore.Leadership,
	run func(context.Context, uint64) error) bool {
	stop := func() {}
	defer func() { stop() }()
	notLeading(l.o.Part)
	notLeading(l.o.Manifests.Part)
	for {
		var now raftstore.Leadership
		var open bool
		select {
		case <-ctx.Done():
			return true
		case now, open = <-leadership:
		}
		stop()
		stop = func() {}
		switch {
		case !open:
			return ctx.Err() != nil
		case now.Leader:
			stop = l.startTerm(ctx, fatal, now.Term, run)
		default:
			notLeading(l.o.Part)
		}
	}
}

// startTerm starts the loops. stop ends them and waits for their end.
func (l *Leader) startTerm(ctx context.Context, fatal context.CancelCauseFunc, number uint64,
	run func(context.Context, uint64) error) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			l.o.Part.Set(status.Running, "")
			err := run(ctx, number)
			switch {
			case errors.Is(err, term.ErrStragglers):
				fatal(fmt.Errorf("%w. coracle must be restarted, so that these controllers do not run beside those of the next term", err))
				return
			case ctx.Err() != nil:
				if err != nil && !errors.Is(err, ErrTermOver) {
					l.o.Logger.Warn("the leader's controllers stopped with an error", "term", number, "error", err)
				}
				return
			case errors.Is(err, ErrTermOver):
				l.o.Logger.Info("the leader's controllers have stopped", "term", number, "reason", err)
				l.o.Part.Set(status.Waiting, "this server is no longer the leader")
				return
			case err == nil:
				err = errors.New("a controller exited unexpectedly")
			}
			l.o.Logger.Error("the leader's controllers failed; restarting them", "term", number, "after", termRetry, "error", err)
			l.o.Part.Set(status.Degraded, "the controllers failed and are restarted every "+termRetry.String()+": "+err.Error())
			timers.Sleep(ctx, termRetry)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// RunTerm runs parts for one term of leadership. All of them use one transport to the API server, which adds the term
// to the context of each request. So the store refuses every write as soon as the term is over. The first refusal ends
// the term here.
func RunTerm(ctx context.Context, api API, log *slog.Logger, number uint64, parts ...term.Part) (err error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	config, closeTransport := api.TermConfig(func(ctx context.Context) context.Context {
		return raftstore.WithFence(ctx, number, func() { end(ErrTermOver) })
	})
	// The transport closes when the term's context is done: a part that has not noticed that yet cannot reach the API
	// server any more.
	closed := make(chan error, 1) // capacity 1: the sender need not wait for the receiver
	context.AfterFunc(ctx, func() {
		drain, done := context.WithTimeout(context.Background(), termDrain)
		defer done()
		closed <- closeTransport(drain)
	})
	defer func() {
		end(nil)
		if closeErr := <-closed; closeErr != nil {
			log.Warn("requests of an ended term are still being served; the store refuses their writes",
				"term", number, "error", closeErr)
		}
		if errors.Is(context.Cause(ctx), ErrTermOver) {
			err = errors.Join(ErrTermOver, err)
		}
	}()
	return term.Run(ctx, term.Options{Config: config, Number: number}, parts...)
}
