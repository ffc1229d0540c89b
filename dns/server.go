// SPDX-License-Identifier: Apache-2.0

// Package dns is the node's cluster DNS: CoreDNS as a library, in this process.
//
// Every node runs one, on its own address; the Service kube-dns, which somebody else makes, leads each client to the
// one of its node. The package owns CoreDNS's configuration and its two sockets per address. Names of the cluster come
// from the API with the network's read-only identity, all others from the host's resolvers, which are followed when they
// change. It never needs the outside: without resolvers, or without a network, cluster names are answered all the same.
package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/coredns/caddy"
	"k8s.io/klog/v2"
)

// Port is where the Service kube-dns leads, for UDP and TCP: host processes need port 53 for themselves.
const Port = 10053

// Options are what a Server needs. Addresses and Kubeconfig are required.
type Options struct {
	// Addresses to listen on, the node's.
	Addresses []netip.Addr
	// Kubeconfig of the network's identity. Certificates that it refers to by path may be renewed in place.
	Kubeconfig string
	// Domain of the cluster; cluster.local when empty.
	Domain string
	// ClusterDNS are the addresses of the Service kube-dns: a host that resolves through them must not be asked back.
	ClusterDNS []netip.Addr
	// ResolvConf names the file with the host's resolvers; empty means the host's own: /etc/resolv.conf, or what
	// systemd-resolved or NetworkManager keep beside it when that has nothing but a stub.
	ResolvConf string
	// ImportDir may hold configuration of the operator: *.override files extend the cluster's server block, *.server
	// files add blocks of their own. A mistake in them is logged and they are left out. Read at start. May be empty.
	ImportDir string
	// Logger is klog's own when left zero.
	Logger klog.Logger
}

// Server is one CoreDNS. Make it with NewServer.
type Server struct {
	o     Options
	log   klog.Logger
	ready atomic.Bool
}

// NewServer checks the options. Nothing listens yet.
func NewServer(o Options) (*Server, error) {
	if len(o.Addresses) == 0 || o.Kubeconfig == "" {
		return nil, errors.New("dns: Addresses and Kubeconfig are required")
	}
	if o.Domain == "" {
		o.Domain = "cluster.local"
	}
	if o.Logger.GetSink() == nil {
		o.Logger = klog.Background()
	}
	if err := register(); err != nil {
		return nil, err
	}
	return &Server{o: o, log: o.Logger.WithName("dns")}, nil
}

// Ready says whether queries are answered, those for cluster names with what was known last.
func (s *Server) Ready() bool { return s.ready.Load() }

// startRetry is the wait after CoreDNS could not start: the address is not there yet, or the port is taken.
const startRetry = 2 * time.Second

// Run serves until ctx is done and then takes everything down. It waits for nobody: without the API, cluster names
// fail at first and everything else is answered.
func (s *Server) Run(ctx context.Context) error {
	watch, err := watchResolvers(ctx, s.o, s.log)
	if err != nil {
		return err
	}
	defer watch.close()
	var instance *caddy.Instance
	defer func() {
		s.ready.Store(false)
		stop(instance)
	}()
	resolvers := watch.current()
	for {
		var retry <-chan time.Time
		next, err := s.start(instance, resolvers)
		switch {
		case err == nil:
			instance = next
			s.ready.Store(true)
			s.log.Info("Cluster DNS answers", "addresses", s.o.Addresses, "port", Port, "resolvers", resolvers)
		case instance != nil:
			s.log.Error(err, "Cluster DNS goes on with the resolvers it had", "after", startRetry)
			retry = time.After(startRetry)
		default:
			s.log.Error(err, "Cluster DNS could not start, trying again; pods resolve no names until then", "after", startRetry)
			retry = time.After(startRetry)
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return nil
			case <-retry:
				waiting = false
			case changed := <-watch.changes:
				waiting = slices.Equal(changed, resolvers)
				resolvers = changed
			}
		}
	}
}

// start starts CoreDNS, or replaces a running one without a gap.
func (s *Server) start(running *caddy.Instance, resolvers []netip.AddrPort) (*caddy.Instance, error) {
	instance, err := launch(running, corefile(s.o, resolvers, true))
	if err != nil && s.o.ImportDir != "" {
		var plainErr error
		if instance, plainErr = launch(running, corefile(s.o, resolvers, false)); plainErr == nil {
			s.log.Error(err, "The operator's DNS configuration does not work and is left out", "dir", s.o.ImportDir)
		}
		err = plainErr
	}
	if err != nil {
		return nil, fmt.Errorf("starting CoreDNS: %w", err)
	}
	return instance, nil
}

func launch(running *caddy.Instance, text string) (*caddy.Instance, error) {
	input := caddy.CaddyfileInput{Filepath: "Corefile", Contents: []byte(text), ServerTypeName: "dns"}
	if running != nil {
		return running.Restart(input)
	}
	instance, err := caddy.Start(input)
	if err != nil {
		stop(instance) // what plugins started before the failure
		return nil, err
	}
	return instance, nil
}

// stop takes an instance down, servers first.
func stop(instance *caddy.Instance) {
	if instance == nil {
		return
	}
	// CoreDNS reports what goes wrong here itself, and there is nothing to be done about it.
	_ = instance.Stop()
	_ = instance.ShutdownCallbacks()
}
