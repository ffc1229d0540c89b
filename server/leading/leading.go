// SPDX-License-Identifier: Apache-2.0

// Package leading is what the server that leads does for the whole cluster: upstream's controllers and scheduler, and
// ours.
//
// It owns the parts of a term, and when a term begins and ends here. It never decides who leads, which the store does.
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
	// termDrain bounds the wait for requests of a term that has ended; they are cancelled by then.
	termDrain = 10 * time.Second
)

// ErrTermOver ends a term whose writes the store refuses. It is not begun again: a term that is over does not come
// back.
var ErrTermOver = errors.New("the store refused a write of this term: another one has begun")

// Options are what a server gives. Those of a part lack what the term has: clients, informers, recorders, lines in the
// status and loggers.
type Options struct {
	// API is the server's own.
	API API
	// Cluster is what all machines of the cluster agree on.
	Cluster     clusterconfig.Settings
	Controllers controllers.Options
	Scheduler   scheduler.Options
	// Volumes asks nodes for folders.
	Volumes localpath.Nodes
	// Manifests without a folder are none.
	Manifests manifests.Options
	Liveness  liveness.Options
	// Judge is set while this server judges nodes.
	Judge *atomic.Pointer[liveness.Judge]
	// Members are those of the store.
	Members   nodemembers.Members
	ServiceLB servicelb.Options
	// Port is the servers'. LBReserved are further ports that no Service gets at nodes' addresses, as
	// loadbalancer.ParsePorts reads them, and NodePortRange is FIRST-LAST.
	Port          int
	LBReserved    []string
	NodePortRange string
	Ingress       ingress.Options
	// ACME orders certificates of Ingresses if it has an e-mail address.
	ACME acme.Options
	// OwnsAddress says whether an address is one of the cluster's.
	OwnsAddress func(corelisters.NodeLister, netip.Addr) bool
	GatewayUse  *gatewayuse.Use
	Helm        helmcharts.Options
	// HelmChildren are the processes that run Helm.
	HelmChildren helmcharts.Children
	// Part, when set, shows whether this server leads; Board, when set, has a line for each of the parts that have one.
	Part   *status.Part
	Board  *status.Board
	Logger *slog.Logger
}

// API makes what reaches the API server for one term, and a function that ends it.
type API interface {
	TermConfig(mark func(context.Context) context.Context) (*rest.Config, func(context.Context) error)
}

// Leader runs what the leader does while this server leads.
type Leader struct {
	o Options
	// helmWanted and gatewayWanted say that a user has an object of the kinds of Helm charts or of the Gateway API.
	helmWanted, gatewayWanted timers.Signal
	// refusals are nodes that gave claims no local volume, which the scheduler gets.
	refusals *localpath.Refusals
}

// New makes the Leader of a server.
func New(o Options) *Leader {
	return &Leader{o: o, helmWanted: timers.NewSignal(), gatewayWanted: timers.NewSignal(), refusals: localpath.NewRefusals(time.Now)}
}

// Follow starts the loops when this server begins to lead and stops them when it ceases to, until ctx is done; it
// returns false when the store closed before. It returns with no loop running. fatal is called when this process must
// not begin another term.
func (l *Leader) Follow(ctx context.Context, fatal context.CancelCauseFunc, leadership <-chan raftstore.Leadership) bool {
	return l.follow(ctx, fatal, leadership, func(ctx context.Context, number uint64) error {
		return RunTerm(ctx, l.o.API, l.o.Logger, number, l.parts()...)
	})
}

// follow runs one term after the other, never two at once.
func (l *Leader) follow(ctx context.Context, fatal context.CancelCauseFunc, leadership <-chan raftstore.Leadership,
	run func(context.Context, uint64) error) bool {
	stop := func() {}
	defer func() { stop() }()
	l.o.Part.Set(status.Waiting, "this server does not lead")
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
			l.o.Part.Set(status.Waiting, "this server does not lead")
		}
	}
}

// startTerm runs the loops until the function it returns is called, which waits for them.
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
				fatal(fmt.Errorf("%w. This process must be started again, so that they do not act beside those of the next term", err))
				return
			case ctx.Err() != nil:
				if err != nil && !errors.Is(err, ErrTermOver) {
					l.o.Logger.Warn("the loops of a leader ended with an error", "term", number, "error", err)
				}
				return
			case errors.Is(err, ErrTermOver):
				l.o.Logger.Info("the loops of a leader have stopped", "term", number, "reason", err)
				l.o.Part.Set(status.Waiting, "this server does not lead any more")
				return
			case err == nil:
				err = errors.New("a loop ended by itself")
			}
			l.o.Logger.Error("the loops of a leader failed and are started again", "term", number, "after", termRetry, "error", err)
			l.o.Part.Set(status.Degraded, "they failed and are started again every "+termRetry.String()+": "+err.Error())
			timers.Sleep(ctx, termRetry)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// RunTerm runs parts for one term of leadership. All of them reach the API server over one transport, which gives the
// context of each request the term, so that the store refuses every write as soon as the term is over. The first
// refusal ends the term here.
func RunTerm(ctx context.Context, api API, log *slog.Logger, number uint64, parts ...term.Part) (err error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	config, closeTransport := api.TermConfig(func(ctx context.Context) context.Context {
		return raftstore.WithFence(ctx, number, func() { end(ErrTermOver) })
	})
	// With its context, a term's loops lose the transport: what has not noticed yet that the term is over has no way to
	// the API server any more.
	closed := make(chan error, 1) // one: who sends need not wait for the receiver
	context.AfterFunc(ctx, func() {
		drain, done := context.WithTimeout(context.Background(), termDrain)
		defer done()
		closed <- closeTransport(drain)
	})
	defer func() {
		end(nil)
		if closeErr := <-closed; closeErr != nil {
			log.Warn("requests of a term that is over are still being served; the store refuses their writes",
				"term", number, "error", closeErr)
		}
		if errors.Is(context.Cause(ctx), ErrTermOver) {
			err = errors.Join(ErrTermOver, err)
		}
	}()
	return term.Run(ctx, term.Options{Config: config, Number: number}, parts...)
}
