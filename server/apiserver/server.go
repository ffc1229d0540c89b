// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	controlplaneapiserver "k8s.io/kubernetes/pkg/controlplane/apiserver"

	"github.com/coracle-k8s/coracle/server/apiserver/memtransport"
)

// Server is an API server. New builds it and Run serves it.
type Server struct {
	options   Options
	chain     *chain
	transport *memtransport.Transport
	loopback  *rest.Config
	informers *cache.InformerName
	nodes     corelisters.NodeLister
	runnable  runnable
	ready     chan struct{} // closed once /readyz passes
}

// runnable is upstream's prepared server. Its type is not exported.
type runnable interface {
	RunWithContext(ctx context.Context) error
}

// identityRenewal is the interval of renewals of the API server's identity lease. It leaves time for a second attempt
// before the lease of one hour expires.
const identityRenewal = 25 * time.Minute

// startTimeout is how long a stop waits for a server that is still starting.
const startTimeout = 20 * time.Second

// drainTimeout limits the wait for in-process requests after the server has stopped.
const drainTimeout = 10 * time.Second

// shutdownTimeout limits the wait for connections to close, which is 60 s upstream. After endLongRequests only two
// waits are left: for writes to a peer that does not read, and for the second that HTTP/2 gives a peer to notice.
const shutdownTimeout = 3 * time.Second

// New builds the server and opens its port. Requests are answered only once Run is called. The store must be installed
// and have answered a linearizable read: upstream ends the process when the store has no quorum for too long during
// start-up.
func New(ctx context.Context, o Options) (*Server, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	unauthenticated := boundUnauthenticated(&o)
	var conns *nodeListener
	if o.Listener != nil {
		conns = &nodeListener{Listener: o.Listener}
		o.Listener = conns
	}
	opts, err := runOptions(ctx, o)
	if err != nil {
		return nil, err
	}
	// Upstream has only this package variable for it. The lease shows how many API servers there are, lasts an hour,
	// and is rewritten every ten seconds by default.
	controlplaneapiserver.IdentityLeaseRenewIntervalPeriod = identityRenewal
	s := &Server{options: o, ready: make(chan struct{})}
	s.informers, err = cache.NewInformerName("kube-apiserver")
	if err != nil {
		return nil, fmt.Errorf("naming the API server's informers (is another one running in this process?): %w", err)
	}
	opts.InformerName = s.informers
	s.transport = memtransport.New(memtransport.Options{Logger: o.Logger})
	g, err := buildGeneric(opts, s.transport, uuid.NewString(), o.Dial, s.ready, o.Logger)
	if err == nil {
		g.config.Authentication.Authenticator = revocationCheck{g.config.Authentication.Authenticator, o.Guard, conns}
		if unauthenticated != nil {
			g.config.Authentication.Authenticator = identityNotifier{g.config.Authentication.Authenticator, unauthenticated}
		}
		s.fenceTerms(g.config)
		s.limitNodeConnections(g.config, g.informers.Core().V1().Pods().Lister()) // admission needs this informer anyway
		identifyFirst(g.config, o.Logger)
		g.config.RESTOptionsGetter = limitedEvents{g.config.RESTOptionsGetter, o.Events}
		s.loopback = g.config.LoopbackClientConfig
		s.nodes = g.informers.Core().V1().Nodes().Lister() // admission of what nodes write needs this informer anyway
		s.chain, err = buildChain(opts, g, o)
	}
	if err != nil {
		s.informers.Release()
		if l := opts.SecureServing.Listener; l != nil {
			l.Close()
		}
		return nil, err
	}
	s.chain.aggregator.GenericAPIServer.ShutdownTimeout = shutdownTimeout
	s.runnable = s.chain.aggregator.GenericAPIServer.PrepareRun()
	s.transport.SetHandler(s.chain.aggregator.GenericAPIServer.Handler)
	return s, nil
}

// Ready is closed once /readyz has passed.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// LoopbackConfig returns a client configuration for this server. Its requests stay in memory and act as system:masters.
// Each call returns a new copy.
func (s *Server) LoopbackConfig() *rest.Config { return rest.CopyConfig(s.loopback) }

// Nodes returns the lister of nodes that this server's admission uses. It is empty before Run.
func (s *Server) Nodes() corelisters.NodeLister { return s.nodes }

// Run serves until ctx is done, then finishes the requests in flight and returns. It may be called once.
//
// A stop while the server is starting waits until it has started, or for startTimeout: two of upstream's hooks end the
// process when they are interrupted. A server that still waits for the store stops at once, as no hook has begun.
func (s *Server) Run(ctx context.Context) error {
	if s.options.Await != nil {
		if err := s.options.Await(ctx); err != nil {
			s.release(ctx)
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("API server: waiting for the store: %w", err)
		}
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	watcherDone := make(chan struct{})
	go func() {
		defer close(watcherDone)
		s.watchReadiness(serving)
	}()
	stopperDone := make(chan struct{})
	go func() {
		defer close(stopperDone)
		defer stop()
		select {
		case <-ctx.Done():
		case <-serving.Done():
			return
		}
		select {
		case <-s.ready:
		case <-serving.Done():
		case <-time.After(startTimeout):
		}
	}()
	var beside sync.WaitGroup
	beside.Go(func() { s.chain.metrics.run(serving, s.ready) })
	beside.Go(func() { s.chain.settings.Run(serving) })
	beside.Go(func() { s.chain.ingress.Run(serving) })
	err := s.runnable.RunWithContext(serving)
	stop()
	<-stopperDone
	<-watcherDone
	beside.Wait()

	drain, drained := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer drained()
	if closeErr := s.transport.Close(drain); closeErr != nil && err == nil {
		err = closeErr
	}
	s.informers.Release()
	if err != nil {
		return fmt.Errorf("API server: %w", err)
	}
	return nil
}

// release frees the resources of New when the server is never run.
func (s *Server) release(ctx context.Context) {
	upstream := s.chain.aggregator.GenericAPIServer
	upstream.SecureServingInfo.Listener.Close()
	upstream.Destroy()
	drain, drained := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer drained()
	if err := s.transport.Close(drain); err != nil {
		s.options.Logger.Warn("requests to an API server that never ran have not ended", "error", err)
	}
	s.informers.Release()
}

// watchReadiness closes ready when /readyz passes for the first time.
func (s *Server) watchReadiness(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.loopback.Host+"/readyz", nil)
		if err == nil {
			req.Header.Set("Authorization", "Bearer "+s.loopback.BearerToken)
			if resp, err := s.transport.RoundTrip(req); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body) // closing it unread would abort the handler
				resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					close(s.ready)
					return
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
