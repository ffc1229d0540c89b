// SPDX-License-Identifier: Apache-2.0

// Package dns is the node's cluster DNS: CoreDNS as a library, in this process.
//
// Every node runs one, on its own addresses. The Service kube-dns, which the server makes, leads each client to its own
// node's. The package owns CoreDNS's configuration and its two sockets per address. It reads names of the cluster from
// the caches that the node's network parts share. It forwards all other names to the host's resolvers, and follows
// their changes. It never depends on external servers: without resolvers, or without a network, cluster names are
// answered.
//
// Its goroutines: its loop; the resolvers of the machine; CoreDNS' two servers for each address and one connection
// manager for each resolver; a lookup for each domain of the search list, every ten minutes.
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
	"path/filepath"
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
	"github.com/coracle-k8s/coracle/internal/connlimit"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/status"
)

// Port is the port to which the Service kube-dns leads, for UDP and TCP: host processes need port 53 themselves.
const Port = 10053

// Options configure a Server. Addresses, Informers, Client and Settings are required.
type Options struct {
	// Addresses to listen on, the node's.
	Addresses []netip.Addr
	// Informers are the node's shared caches, with Names. The caller runs them.
	Informers *netinformers.Informers
	// Client has the network's identity. It writes events about CustomConfigMap.
	Client kubernetes.Interface
	// Settings receives each change of CustomConfigMap.
	Settings clustersettings.Follower
	// Domain of the cluster. Empty means cluster.local.
	Domain string
	// ClusterDNS are the addresses of the Service kube-dns. A host that resolves through them must not be used as a
	// resolver.
	ClusterDNS []netip.Addr
	// ResolvConf names the file with the host's resolvers. Empty means the host's own: /etc/resolv.conf, or the file of
	// systemd-resolved or NetworkManager when that names only a stub.
	ResolvConf string
	// Clients are the cluster's networks. Their queries are answered, and so are this machine's.
	Clients []netip.Prefix
	// ImportDir may contain the operator's configuration: *.override files extend the cluster's server block, and
	// *.server files add separate blocks, like the keys of CustomConfigMap. A file with an error is logged and left
	// out. The folder is read at the start. It may be empty.
	ImportDir string
	// Board has a status line while changes of the host's resolvers are not noticed at once. It may be nil.
	Board *status.Board
	// Logger is klog's own if it is the zero value.
	Logger klog.Logger

	id         string                            // of this Server; a query with it can only come from this Server
	newWatcher func() (*fsnotify.Watcher, error) // fsnotify's when nil; tests set it
	// probeTimeout is how long to wait for a resolver that is checked for loops. 0 means two seconds. Tests set others.
	probeTimeout time.Duration
	// maxConnections is how many TCP connections there may be. 0 means as many as the memory allows. Tests set others.
	maxConnections int
}

// Server runs a CoreDNS in this process. Make it with NewServer, once for its Informers.
type Server struct {
	o   Options
	log klog.Logger
	// loopedResolvers are resolvers that were logged because they lead back here. Only Run uses this and the fields
	// below.
	loopedResolvers map[netip.AddrPort]bool
	// retryAfter is the time until the next check for such resolvers if one of them did not reply. It is 0 if all did.
	retryAfter   time.Duration
	fileSections customConfig // the working files of ImportDir
	custom       customConfig // the working keys of the ConfigMap
	// invalidSections are the files and keys that do not work by themselves, and reportedSections those that are not in
	// force, with the reasons.
	invalidSections  map[string]error
	reportedSections map[string]string
}

// NewServer checks the options. It does not listen yet.
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
	bound, err := connlimit.ByMemory()
	if err != nil {
		log.Error(err, "The available memory is unknown; the limit on connections to the cluster's DNS is low")
	}
	o.maxConnections = cmp.Or(o.maxConnections, bound)
	names, err := newCluster(o.Informers, log)
	if err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	o.id = strings.ToLower(rand.Text())
	clusters.Store(o.id, names)
	return &Server{o: o, log: log, loopedResolvers: map[netip.AddrPort]bool{}}, nil
}

// loopEvery is the interval of checks whether resolvers on this machine lead back here. loopSoon is the first pause
// after a resolver did not reply. The pause doubles each time.
const loopEvery, loopSoon = 5 * time.Minute, 2 * time.Second

// startRetry is the wait after CoreDNS could not start: the address does not exist yet, or the port is in use.
const startRetry = 2 * time.Second

// Run serves until ctx is done and then stops CoreDNS. Run may be called again when the first call has returned. It
// waits for no server: without the API, cluster names fail at first, and everything else is answered.
func (s *Server) Run(ctx context.Context) error {
	watch := watchResolvers(ctx, s.o, s.log)
	defer watch.close()
	defer clusters.Delete(s.o.id)
	parts := s.followCustom(ctx)
	defer parts.close()
	var instance *caddy.Instance
	defer func() { stop(instance) }()
	resolvers := watch.current()
	use, here := splitResolvers(resolvers) // those on this machine are first checked for loops
	var inForce customConfig
	for {
		var retry, poll, again <-chan time.Time
		sections, refused, err := s.compatible(instance, use)
		if err == nil {
			var next *caddy.Instance
			if next, err = s.start(instance, use, sections); err == nil {
				instance, inForce = next, sections
			}
			s.report(parts, refused)
		}
		switch {
		case err == nil:
			s.log.Info("Cluster DNS answers", "addresses", s.o.Addresses, "port", Port, "resolvers", use)
			if len(refused) > 0 { // an address may come, and a port become free
				again = time.After(loopEvery)
			}
			if len(here) > 0 {
				able, wait := s.withoutLoops(ctx, resolvers)
				if !slices.Equal(able, use) {
					use = able
					continue
				}
				poll = time.After(wait)
			}
		case instance != nil:
			s.log.Error(err, "Cluster DNS goes on with the configuration it had", "after", startRetry)
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
			case <-again:
				sections, _, err := s.compatible(instance, use)
				waiting, again = err != nil || maps.Equal(sections, inForce), time.After(loopEvery)
			case <-poll:
				able, wait := s.withoutLoops(ctx, resolvers)
				waiting, poll = slices.Equal(able, use), time.After(wait)
				use = able
			case data := <-parts.changes:
				waiting = !s.apply(data)
			case changed := <-watch.changes:
				if waiting = slices.Equal(changed, resolvers); !waiting {
					resolvers = changed
					use, here = splitResolvers(resolvers)
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
	s.fileSections, s.invalidSections = s.selectWorkingSections(nil, files)
	return watchCustom(ctx, s.o)
}

// apply takes over the ConfigMap's content, and returns whether that changes anything.
func (s *Server) apply(data customConfig) (changed bool) {
	now, errs := s.selectWorkingSections(s.custom, data)
	invalid := map[string]error{}
	for name, err := range s.invalidSections {
		if filepath.IsAbs(name) { // a file, which is read at the start only
			invalid[name] = err
		}
	}
	maps.Copy(invalid, errs)
	changed = !maps.Equal(now, s.custom) || len(invalid)+len(s.invalidSections) > 0
	s.custom, s.invalidSections = now, invalid
	return changed
}

// start starts CoreDNS, or replaces a running one without a gap.
func (s *Server) start(running *caddy.Instance, resolvers []netip.AddrPort, sections customConfig) (*caddy.Instance, error) {
	extra, err := s.render(sections)
	if err != nil {
		return nil, err
	}
	starts.Store(loopName(s.o.id), newStarting(running))
	defer starts.Delete(loopName(s.o.id))
	instance, err := s.launch(running, corefile(s.o, resolvers, extra))
	if err != nil {
		return nil, fmt.Errorf("starting CoreDNS: %w", err)
	}
	return instance, nil
}

// launch starts CoreDNS, or replaces a running one. The returned instance can be stopped.
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

// serveTimeout limits how long to wait until CoreDNS' servers run. Only a server that does not reply at all takes so
// long.
const serveTimeout = 10 * time.Second

// awaitServers waits until all servers of an instance serve, by sending a query to each. CoreDNS starts them
// asynchronously, and cannot stop one that has not started: it would run forever beside the next instance, and answer
// some of the queries from an old configuration.
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

// stop stops an instance, servers first.
func stop(instance *caddy.Instance) {
	if instance == nil {
		return
	}
	// CoreDNS logs errors here itself, and nothing can be done about them.
	_ = instance.Stop()
	_ = instance.ShutdownCallbacks()
}
