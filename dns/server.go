// SPDX-License-Identifier: Apache-2.0

// Package dns is the node's cluster DNS: CoreDNS as a library, in this process.
//
// Every node runs one, on its own address; the Service kube-dns, which the server makes, leads each client to the
// one of its node. The package owns CoreDNS's configuration and its two sockets per address. Names of the cluster come
// from the caches that the node's network parts share, all others from the host's resolvers, which are followed when
// they change. It never needs the outside: without resolvers, or without a network, cluster names are answered all the
// same.
package dns

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coredns/caddy"
	"github.com/fsnotify/fsnotify"
	"github.com/miekg/dns"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/status"
)

// Port is where the Service kube-dns leads, for UDP and TCP: host processes need port 53 for themselves.
const Port = 10053

// Options are what a Server needs. Addresses, Informers, Client and Settings are required.
type Options struct {
	// Addresses to listen on, the node's.
	Addresses []netip.Addr
	// Informers are the node's shared caches, with Names, which the caller runs.
	Informers *netinformers.Informers
	// Client has the network's identity, and is for events about CustomConfigMap.
	Client kubernetes.Interface
	// Settings follow CustomConfigMap.
	Settings clustersettings.Follower
	// Domain of the cluster; cluster.local when empty.
	Domain string
	// ClusterDNS are the addresses of the Service kube-dns: a host that resolves through them must not be asked back.
	ClusterDNS []netip.Addr
	// ResolvConf names the file with the host's resolvers; empty means the host's own: /etc/resolv.conf, or what
	// systemd-resolved or NetworkManager keep beside it when that has nothing but a stub.
	ResolvConf string
	// Clients are the networks whose questions are answered, beside those of this machine: the cluster's.
	Clients []netip.Prefix
	// ImportDir may hold configuration of the operator: *.override files extend the cluster's server block, *.server
	// files add blocks of their own, as the keys of CustomConfigMap do. A mistake in one is logged and it is left out.
	// Read at start. May be empty.
	ImportDir string
	// Board has a line while changes of the host's resolvers are not noticed at once. May be nil.
	Board *status.Board
	// Logger is klog's own when left zero.
	Logger klog.Logger

	id         string                            // of this Server: no question by another one has it
	newWatcher func() (*fsnotify.Watcher, error) // fsnotify's when nil; of tests
	// probeTimeout is how long a resolver gets to lead back here; 0 means two seconds, and others are of tests.
	probeTimeout time.Duration
}

// Server is one CoreDNS. Make it with NewServer, once for its Informers.
type Server struct {
	o   Options
	log klog.Logger
	// looped are resolvers of which it was said that they lead back here. They and what follows are Run's.
	looped map[netip.AddrPort]bool
	// soon is how long after the last look for such resolvers the next one comes, since one of them did not answer; 0:
	// they did.
	soon   time.Duration
	files  custom // of ImportDir, what works
	custom custom // of the ConfigMap
}

// NewServer checks the options. Nothing listens yet.
func NewServer(o Options) (*Server, error) {
	if len(o.Addresses) == 0 || o.Informers == nil || o.Client == nil || o.Settings == nil {
		return nil, errors.New("dns: Addresses, Informers, Client and Settings are required")
	}
	o.Domain = cmp.Or(o.Domain, "cluster.local")
	o.probeTimeout = cmp.Or(o.probeTimeout, 2*time.Second)
	if o.Logger.GetSink() == nil {
		o.Logger = klog.Background()
	}
	if err := register(); err != nil {
		return nil, err
	}
	log := o.Logger.WithName("dns")
	names, err := newCluster(o.Informers, log)
	if err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	o.id = strings.ToLower(rand.Text())
	clusters.Store(o.id, names)
	return &Server{o: o, log: log, looped: map[netip.AddrPort]bool{}}, nil
}

// loopEvery is how often resolvers on this machine are asked whether they lead back here; loopSoon is when one that has
// not answered is asked again, each time after twice as long.
const loopEvery, loopSoon = 5 * time.Minute, 2 * time.Second

// startRetry is the wait after CoreDNS could not start: the address is not there yet, or the port is taken.
const startRetry = 2 * time.Second

// Run serves until ctx is done and then takes everything down. A second call may follow when the first has returned. It
// waits for no server: without the API, cluster names fail at first and everything else is answered.
func (s *Server) Run(ctx context.Context) error {
	watch := watchResolvers(ctx, s.o, s.log)
	defer watch.close()
	defer clusters.Delete(s.o.id)
	parts := s.followCustom(ctx)
	defer parts.close()
	var instance *caddy.Instance
	defer func() { stop(instance) }()
	resolvers := watch.current()
	use, here := split(resolvers) // those on this machine are asked first whether they lead back
	good := custom{}
	for {
		var retry, poll <-chan time.Time
		next, err := s.start(instance, use, s.custom)
		if err != nil && instance != nil && !maps.Equal(s.custom, good) {
			parts.complain(ctx, "(all of them together)", err)
			s.log.Error(err, "The ConfigMap does not work with what else is configured; the last one that did stays", "configmap",
				CustomConfigMap)
			s.custom = good
			continue
		}
		switch {
		case err == nil:
			instance, good = next, s.custom
			s.log.Info("Cluster DNS answers", "addresses", s.o.Addresses, "port", Port, "resolvers", use)
			if len(here) > 0 {
				able, wait := s.withoutLoops(ctx, resolvers)
				if !slices.Equal(able, use) {
					use = able
					continue
				}
				poll = time.After(wait)
			}
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
			case <-poll:
				able, wait := s.withoutLoops(ctx, resolvers)
				waiting, poll = slices.Equal(able, use), time.After(wait)
				use = able
			case data := <-parts.changes:
				waiting = !s.apply(ctx, parts, data)
			case changed := <-watch.changes:
				if waiting = slices.Equal(changed, resolvers); !waiting {
					resolvers = changed
					use, here = split(resolvers)
				}
			}
		}
	}
}

// followCustom reads the operator's files, and begins to follow the ConfigMap.
func (s *Server) followCustom(ctx context.Context) *customWatch {
	files, err := customFiles(s.o.ImportDir)
	if err != nil {
		s.log.Error(err, "The operator's DNS configuration is left out", "dir", s.o.ImportDir)
	}
	var errs map[string]error
	s.files, errs = s.accept(nil, files)
	for name, err := range errs {
		s.log.Error(err, "A file of the operator's DNS configuration does not work and is left out", "file", name)
	}
	return watchCustom(ctx, s.o, s.log)
}

// apply takes over the ConfigMap's content, and says whether that changes anything.
func (s *Server) apply(ctx context.Context, w *customWatch, data custom) (changed bool) {
	now, errs := s.accept(s.custom, data)
	for key, err := range errs {
		s.log.Error(err, "A key of the ConfigMap does not work; what it said before stays in force", "configmap", CustomConfigMap, "key",
			key)
		w.complain(ctx, key, err)
	}
	changed = !maps.Equal(now, s.custom)
	s.custom = now
	return changed
}

// start starts CoreDNS, or replaces a running one without a gap.
func (s *Server) start(running *caddy.Instance, resolvers []netip.AddrPort, from custom) (*caddy.Instance, error) {
	if running == nil {
		if err := free(s.o.Addresses); err != nil {
			return nil, err
		}
	}
	both := maps.Clone(s.files)
	maps.Copy(both, from)
	instance, err := s.launch(running, corefile(s.o, resolvers, s.render(both)))
	if err != nil && len(both) > 0 && running == nil {
		var plainErr error
		if instance, plainErr = s.launch(running, corefile(s.o, resolvers, s.render(nil))); plainErr == nil {
			s.log.Error(err, "The operator's DNS configuration does not work and is left out")
		}
		err = plainErr
	}
	if err != nil {
		return nil, fmt.Errorf("starting CoreDNS: %w", err)
	}
	return instance, nil
}

// free says whether the addresses are there and no program has their port. CoreDNS opens its sockets one after the
// other and closes none of them when one cannot be opened. They share their port with those of the next attempt, and a
// part of the questions would go to sockets without a reader.
func free(addresses []netip.Addr) error {
	for _, a := range addresses {
		at := netip.AddrPortFrom(a, Port).String()
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		pc, packetErr := net.ListenPacket("udp", at)
		if packetErr == nil {
			packetErr = pc.Close()
		}
		if err := errors.Join(packetErr, l.Close()); err != nil {
			return err
		}
	}
	return nil
}

// launch starts CoreDNS, or replaces a running one. What it returns can be stopped.
func (s *Server) launch(running *caddy.Instance, text string) (*caddy.Instance, error) {
	input := caddy.CaddyfileInput{Filepath: "Corefile", Contents: []byte(text), ServerTypeName: "dns"}
	if running != nil {
		next, err := running.Restart(input)
		if err != nil {
			return nil, err
		}
		s.awaitServers(next)
		return next, nil
	}
	instance, err := caddy.Start(input)
	if err != nil {
		stop(instance) // what plugins started before the failure
		return nil, err
	}
	s.awaitServers(instance)
	return instance, nil
}

// serveTimeout is how long a machine may take to run what CoreDNS has begun. Only a server that answers nothing at all
// takes so long.
const serveTimeout = 10 * time.Second

// awaitServers waits until all servers of an instance serve, by asking each something. CoreDNS only begins to start
// them, and cannot stop one that has not started: that one would go on for ever beside the next instance, and give a
// part of the answers from a configuration of the past.
func (s *Server) awaitServers(instance *caddy.Instance) {
	var wg sync.WaitGroup
	for _, server := range instance.Servers() {
		for _, at := range []net.Addr{server.Addr(), server.LocalAddr()} {
			if at == nil {
				continue
			}
			wg.Go(func() {
				c := &dns.Client{Net: at.Network(), Timeout: serveTimeout}
				if _, _, err := c.Exchange(new(dns.Msg).SetQuestion(loopName(s.o.id), dns.TypeTXT), at.String()); err != nil {
					s.log.V(1).Info("A server of the cluster's DNS does not answer yet", "network", at.Network(), "address", at, "error",
						err.Error())
				}
			})
		}
	}
	wg.Wait()
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
