// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/kubernetes/pkg/volume"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/coracle-k8s/coracle/controllers"
	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/scheduler"
	"github.com/coracle-k8s/coracle/server/apiserver"
	"github.com/coracle-k8s/coracle/server/bootstrap"
	"github.com/coracle-k8s/coracle/server/manifests"
	"github.com/coracle-k8s/coracle/server/nodemembers"
	"github.com/coracle-k8s/coracle/server/pki"
)

const (
	// termRetry is how long a leader whose loops failed waits before it starts them again.
	termRetry = 5 * time.Second
	// termDrain bounds the wait for requests of a term that has ended; they are cancelled by then.
	termDrain = 10 * time.Second
)

// errTermOver ends a term whose writes the store refuses. It is not begun again: a term that is over does not come
// back.
var errTermOver = errors.New("the store refused a write of this term: another one has begun")

// lead waits for the API server, then starts the loops when this server begins to lead and stops them when it ceases
// to, until ctx is done. It returns with no loop running.
func (s *Server) lead(ctx context.Context, api *apiserver.Server, store *raftstore.Store) error {
	select {
	case <-ctx.Done():
		return nil
	case <-api.Ready():
	}
	s.board.api.Set(status.Running, "")
	s.starting.Serves()
	if err := s.admission.Begin(api.LoopbackConfig()); err != nil {
		return err
	}

	var role *nodemembers.Role
	if s.o.OwnNode {
		var err error
		if role, err = nodemembers.NewRole(api.LoopbackConfig(), s.o.NodeName, s.data.ServerID(), store.Cluster(), s.log); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var beside sync.WaitGroup
	defer beside.Wait()
	// Beside the loops and not before them: a first pod need not wait for it, and a server that does not lead does it
	// too.
	beside.Go(func() {
		if err := s.bootstrapObjects(ctx, api.LoopbackConfig(), func() { close(s.ready) }); err != nil {
			cancel(err)
		}
	})
	if role != nil {
		beside.Go(func() { role.Run(ctx) })
	}
	beside.Go(func() {
		if err := s.gossip.Follow(ctx, api.LoopbackConfig()); err != nil {
			cancel(err)
		}
	})
	if !s.follow(ctx, cancel, store.Leadership(), func(ctx context.Context, number uint64) error {
		return s.runTerm(ctx, api, number, s.leadersParts()...)
	}) {
		cancel(errors.New("the store has closed by itself; its last lines in the log say why"))
	}
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// follow runs one term after the other, never two at once, until ctx is done; it returns false when the store closed
// before. fatal is called when this process must not begin another term.
func (s *Server) follow(ctx context.Context, fatal context.CancelCauseFunc, leadership <-chan raftstore.Leadership,
	run func(context.Context, uint64) error) bool {
	stop := func() {}
	defer func() { stop() }()
	s.board.leader.Set(status.Waiting, "this server does not lead")
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
			stop = s.startTerm(ctx, fatal, now.Term, run)
		default:
			s.board.leader.Set(status.Waiting, "this server does not lead")
		}
	}
}

// startTerm runs the loops until the function it returns is called, which waits for them.
func (s *Server) startTerm(ctx context.Context, fatal context.CancelCauseFunc, number uint64, run func(context.Context, uint64) error) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			s.board.leader.Set(status.Running, "")
			err := run(ctx, number)
			switch {
			case errors.Is(err, term.ErrStragglers):
				fatal(fmt.Errorf("%w. This process must be started again, so that they do not act beside those of the next term", err))
				return
			case ctx.Err() != nil:
				if err != nil && !errors.Is(err, errTermOver) {
					s.log.Warn("the loops of a leader ended with an error", "term", number, "error", err)
				}
				return
			case errors.Is(err, errTermOver):
				s.log.Info("the loops of a leader have stopped", "term", number, "reason", err)
				s.board.leader.Set(status.Waiting, "this server does not lead any more")
				return
			case err == nil:
				err = errors.New("a loop ended by itself")
			}
			s.log.Error("the loops of a leader failed and are started again", "term", number, "after", termRetry, "error", err)
			s.board.leader.Set(status.Degraded, "they failed and are started again every "+termRetry.String()+": "+err.Error())
			select {
			case <-ctx.Done():
			case <-time.After(termRetry):
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// leadersParts are everything that one server of the cluster does for all: upstream's controllers and scheduler, and
// ours.
func (s *Server) leadersParts() []term.Part {
	parts := []term.Part{s.controllersPart, s.schedulerPart, s.dnsPart, s.livenessPart, s.membersPart,
		s.departuresPart, s.registrationGCPart, s.serviceLBPart, s.ingressPart, s.gatewayPart, s.helmPart}
	if s.o.ManifestsDir != "" {
		parts = append(parts, s.manifestsPart)
	}
	return parts
}

// runTerm runs parts for one term of leadership. All of them reach the API server over one transport, which gives the
// context of each request the term, so that the store refuses every write as soon as the term is over. The first
// refusal ends the term here.
func (s *Server) runTerm(ctx context.Context, api *apiserver.Server, number uint64, parts ...term.Part) (err error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	config, closeTransport := api.TermConfig(func(ctx context.Context) context.Context {
		return raftstore.WithFence(ctx, number, func() { end(errTermOver) })
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
			s.log.Warn("requests of a term that is over are still being served; the store refuses their writes", "term", number, "error", closeErr)
		}
		if errors.Is(context.Cause(ctx), errTermOver) {
			err = errors.Join(errTermOver, err)
		}
	}()
	return term.Run(ctx, term.Options{Config: config, Number: number}, parts...)
}

func (s *Server) controllersPart(ctx context.Context, t *term.Term) error {
	o := s.o.controllerOptions(&signing{
		cert: s.pki.CAFile(pki.ClientCA), key: s.pki.CAKeyFile(pki.ClientCA),
		root: s.pki.CAFile(pki.ServerCA), serviceAccount: s.pki.ServiceAccountKeyFile(),
	})
	o.Term = t
	o.Unused = func(group string) bool { return group == gatewayv1.GroupName && s.gatewayUse.Load().UnusedNow(ctx) }
	if s.o.Cluster.NoLocalStorage {
		return controllers.Run(ctx, o)
	}
	ctx, cancel := context.WithCancel(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()
	o.VolumePlugins = func() ([]volume.VolumePlugin, error) {
		v, err := s.newLocalStorage(ctx, t)
		if err != nil {
			return nil, err
		}
		beside.Go(func() { v.Run(ctx) })
		return []volume.VolumePlugin{v}, nil
	}
	return controllers.Run(ctx, o)
}

func (s *Server) schedulerPart(ctx context.Context, t *term.Term) error {
	o := s.o.schedulerOptions()
	o.Term = t
	if !s.o.Cluster.NoLocalStorage {
		o.Refusals = s.refusals
	}
	return scheduler.Run(ctx, o)
}

func (s *Server) dnsPart(ctx context.Context, t *term.Term) error {
	d := bootstrap.NewDNSEndpoints(t.Client, t.Informers, s.o.Cluster.DNS.AsSlice(), s.log.With("part", "cluster DNS"))
	if !t.StartInformers(ctx) {
		return nil
	}
	return d.Run(ctx)
}

func (s *Server) manifestsPart(ctx context.Context, t *term.Term) error {
	m, err := manifests.New(manifests.Options{Dir: s.o.ManifestsDir, ServerID: s.data.ServerID(), Config: t.Config,
		Want: s.wantKind, Part: s.board.manifests, Board: s.o.Board, Logger: s.log.With("part", "manifests")})
	if err != nil {
		return err
	}
	if !t.StartInformers(ctx) { // it listens to none, but the others wait for every part
		return nil
	}
	return m.Run(ctx)
}
