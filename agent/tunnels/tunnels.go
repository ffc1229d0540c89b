// SPDX-License-Identifier: Apache-2.0

// Package tunnels keeps a connection from this node to each of the cluster's servers (nodetunnel). Through it a server
// reaches the kubelet and the node's pods, and receives the node's signs of life.
//
// It owns these connections and decides which addresses servers may reach through them. It never chooses the servers.
//
// Its goroutines: for each server one that dials and serves, one that pings and two of yamux's; two for each open
// stream.
package tunnels

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/localvolume"
	"github.com/coracle-k8s/coracle/nodetunnel"
)

const (
	// pollPeriod is how often the list of servers is compared with the open connections.
	pollPeriod = 2 * time.Second
	// firstPause and maxPause are the shortest and longest pause before a server is dialed again.
	firstPause, maxPause = 500 * time.Millisecond, 2 * time.Second
	// dialTimeout limits connecting to a server, including TLS.
	dialTimeout = 5 * time.Second
	// streamTimeout limits connecting to an address of this node.
	streamTimeout = 10 * time.Second
	// minLifetime is how long a connection has to last to count as successful: a server that rejects this node closes
	// it at once.
	minLifetime = 10 * time.Second
)

// All fields of Options are required, except PodCIDRs, Volumes, Answered, Ended, Readiness, Until, Now and Logger.
type Options struct {
	// Servers lists the servers as host:port.
	Servers func() []string
	// NodePair is the file with the node's certificate and key. ServerCAFile is the file with the servers' authority.
	// Both are read again for each connection.
	NodePair, ServerCAFile string
	// NodeIPs are this node's addresses. PodCIDRs returns the currently known networks of its pods.
	NodeIPs  []netip.Addr
	PodCIDRs func() []netip.Prefix
	// Volumes, when set, serves a server's requests for the node's volumes, which use the address localvolume.Target.
	// It closes the connection and returns.
	Volumes func(context.Context, net.Conn)
	// Answered is called for each reply of a server, which is once a second. itself means that the server's certificate
	// names the dialed address: no machine has forwarded the connection. It must not block.
	Answered func(server string, itself bool)
	// Ended is called each time that a connection to a server has ended. It must not block.
	Ended func(server string)
	// Readiness is called with the reason why a server is not ready for clients (nodetunnel.Node), which is empty when
	// it is ready and when it is connected again. It must not block.
	Readiness func(server, reason string)
	// Until is nodetunnel.Node's Until, for pings.
	Until func(period time.Duration) time.Duration
	// Now returns the time for checks of a server's certificate. nil means time.Now.
	Now    func() time.Time
	Logger *slog.Logger
}

// Run keeps the connections until ctx is done, and returns when none is open.
func Run(ctx context.Context, o Options) {
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stops := map[string]context.CancelFunc{}
	next := time.NewTimer(timers.Until(pollPeriod))
	defer next.Stop()
	for {
		servers := o.Servers()
		for s, stop := range stops {
			if !slices.Contains(servers, s) {
				stop()
				delete(stops, s)
			}
		}
		for _, s := range servers {
			if stops[s] == nil {
				ctx, stop := context.WithCancel(ctx)
				stops[s] = stop
				running.Go(func() { o.maintain(ctx, s) })
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-next.C:
			next.Reset(timers.Until(pollPeriod))
		}
	}
}

// maintain keeps the connection to one server until ctx is done.
func (o *Options) maintain(ctx context.Context, server string) {
	var asked sync.WaitGroup
	defer asked.Wait()
	node := nodetunnel.Node{Allowed: o.allowed, Until: o.Until}
	if o.Volumes != nil {
		node.Dial = func(dialing context.Context, network, address string) (net.Conn, error) {
			if address != localvolume.Target.String() {
				return (&net.Dialer{Timeout: streamTimeout}).DialContext(dialing, network, address)
			}
			here, there := net.Pipe()
			asked.Go(func() { o.Volumes(ctx, there) })
			return here, nil
		}
	}
	itself := false // the server's certificate names its address
	if o.Answered != nil {
		node.Answered = func() { o.Answered(server, itself) }
	}
	if o.Readiness != nil {
		node.Readiness = func(reason string) { o.Readiness(server, reason) }
	}
	last := ""
	for pause := firstPause; ctx.Err() == nil; pause = min(2*pause, maxPause) {
		c, err := o.dial(ctx, server)
		if err == nil {
			began := time.Now()
			itself = protocol.NamesAddress(c.ConnectionState(), server)
			if o.Readiness != nil {
				o.Readiness(server, "")
			}
			err = node.Serve(ctx, c)
			if o.Ended != nil && ctx.Err() == nil {
				o.Ended(server)
			}
			if time.Since(began) > minLifetime {
				pause, last = firstPause, ""
			}
		}
		if ctx.Err() != nil {
			return
		}
		if text := err.Error(); text != last {
			last = text
			o.Logger.Info("no connection to a server; retrying", "server", server, "reason", text)
		}
		timers.Sleep(ctx, pause/2+rand.N(pause/2)) // random: all nodes lose a server at the same moment
	}
}

// allowed reports whether servers may reach an address through this node: it is the node's own, or that of its volumes.
func (o *Options) allowed(to netip.AddrPort) bool {
	a := to.Addr()
	if o.Volumes != nil && to == localvolume.Target {
		return true
	}
	if slices.Contains(o.NodeIPs, a) {
		return true
	}
	return o.PodCIDRs != nil && slices.ContainsFunc(o.PodCIDRs(), func(p netip.Prefix) bool { return p.Contains(a) })
}

// dial connects to a server and verifies that it is one of the cluster's.
func (o *Options) dial(ctx context.Context, server string) (*tls.Conn, error) {
	pair, err := tls.LoadX509KeyPair(o.NodePair, o.NodePair)
	if err != nil {
		return nil, fmt.Errorf("reading the node's certificate: %w", err)
	}
	config, err := protocol.ServerTLS(o.ServerCAFile, nodetunnel.Protocol, o.Now)
	if err != nil {
		return nil, err
	}
	config.Certificates = []tls.Certificate{pair}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	return c.(*tls.Conn), nil // tls.Dialer's documentation guarantees it
}
