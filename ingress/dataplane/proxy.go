// SPDX-License-Identifier: Apache-2.0

// Package dataplane serves HTTP by a table of hosts, certificates and endpoints: the data plane of the ingress proxy.
//
// It owns the listeners that it is given and the connections to endpoints. It routes requests by the table of the last
// Apply. It does not use the Kubernetes API and stores nothing. It reads files and resolves names only for
// authentication servers and mirrors outside of the cluster. Its goroutines: those of net/http, two for each tunnel
// (tunnel.go), one for each attempt to connect one (dial.go), one for each Serve, and one for the agent's connection
// (control.go). Serve and Control.Serve wait for theirs.
package dataplane

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// Options are the options of New. The zero value of each field stands for its default.
type Options struct {
	// Logger logs panics as errors and the messages of net/http at level debug; slog.Default() by default.
	Logger *slog.Logger
	// HeaderTimeout is the time that a client may take for a TLS handshake or the header of a request; 10 s by default.
	HeaderTimeout time.Duration
	// IdleTimeout is the longest time without a byte while a request is under way: between bytes of its body, until the
	// header of the response, between bytes of the response. It does not apply to streams (gRPC, server-sent events)
	// and tunnels. 60 s by default.
	IdleTimeout time.Duration
	// KeepAlive is the time for which a client's connection stays open without a request; 75 s by default.
	KeepAlive time.Duration
	// DialTimeout limits each attempt to connect to an endpoint; 2 s by default.
	DialTimeout time.Duration
	// Unresponsive is the time after which a connection to a backend is closed if the backend's machine acknowledges
	// nothing. Whole seconds, 30 s by default.
	UnresponsiveTimeout time.Duration
	// DrainTimeout limits the time for which Serve waits for requests and tunnels when it ends; 30 s by default.
	DrainTimeout time.Duration
	// HandoverTimeout is the limit in place of DrainTimeout when another process serves on the sockets (ErrHandedOver);
	// 1 h by default.
	HandoverTimeout time.Duration
	// MaxConnections limits the connections of clients; 4,000 by default. One source may have half of them. An idle
	// websocket over TLS takes less than 40 KB.
	MaxConnections int
	// Refuse reports whether an endpoint's address may not be dialled; RefuseLocal by default.
	Refuse func(netip.Addr) bool
}

const (
	maxRequestHeader = 32 << 10
	// maxFields limits the number of fields in a request's header. Short fields take ten times their length in memory.
	maxFields         = 256
	maxResponseHeader = 128 << 10
)

// Proxy routes requests by its table. Its methods may be called from several goroutines.
type Proxy struct {
	options      Options
	fallbackCert *tls.Certificate
	defaultCert  *certificate
	current      atomic.Pointer[routing]
	upstream     *upstream
	stats        Stats
	limits       *limits
	comparisons  *comparisons
	mirrors      mirrors
	handshakes   handshakes
	ending       chan struct{} // End closes it
	endOnce      sync.Once
	complained   atomic.Bool // the log has a message about a trusted proxy without the PROXY protocol

	mu           sync.Mutex // guards what follows, for Apply
	sections     table.Sections
	problems     map[string]string // by key, except absent certificates
	objects      *objects
	alternatives map[string]*alternative // by site
	quicKey      []byte
	trusted      []netip.Prefix
	proxied      bool
	cluster      []netip.Prefix
}

// Stats are counters of a Proxy.
type Stats struct {
	// Requests counts answered requests by the first digit of their status. Requests that ended without a status are at
	// 0.
	Requests [6]atomic.Uint64
	// Connections is the number of clients' open connections. Tunnels is the number of open websockets and streams.
	Connections, Tunnels atomic.Int64
	// Refused counts closed connections: above a limit, for lack of memory, or without their PROXY protocol header.
	Refused atomic.Uint64
	// Limited counts what table.Limited counts.
	Limited struct{ Memory, Connections, Requests atomic.Uint64 }
	// DialFailures counts attempts to connect to endpoints that failed.
	DialFailures atomic.Uint64
	// MirrorsDropped counts mirrored requests that were not sent because a limit was exceeded. MirrorsFailed counts
	// those without a response.
	MirrorsDropped, MirrorsFailed atomic.Uint64
	// Panics counts requests that ended by a panic in the proxy.
	Panics atomic.Uint64
}

// New makes a Proxy with an empty table.
func New(o Options) (*Proxy, error) {
	own, err := ownCertificate(time.Now())
	if err != nil {
		return nil, fmt.Errorf("making an ingress proxy: %w", err)
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())
	if o.Refuse == nil {
		o.Refuse = RefuseLocal
	}
	for field, value := range map[*time.Duration]time.Duration{
		&o.HeaderTimeout: 10 * time.Second, &o.IdleTimeout: time.Minute, &o.KeepAlive: 75 * time.Second,
		&o.DialTimeout: 2 * time.Second, &o.DrainTimeout: 30 * time.Second,
		&o.HandoverTimeout: time.Hour, &o.UnresponsiveTimeout: 30 * time.Second,
	} {
		*field = cmp.Or(*field, value)
	}
	o.MaxConnections = cmp.Or(o.MaxConnections, 4000)
	p := &Proxy{
		options: o, fallbackCert: own, ending: make(chan struct{}), handshakes: handshakes{finished: timers.NewSignal()},
		comparisons: newComparisons(),
		sections:    table.Sections{}, problems: map[string]string{}, alternatives: map[string]*alternative{},
	}
	p.current.Store(&routing{sites: map[string]*siteRoutes{}})
	p.limits = newLimits(o.MaxConnections, &p.stats)
	p.upstream = newUpstream(o, func(a netip.Addr) bool { return inNetworks(a.String(), p.current.Load().cluster) }, &p.stats.DialFailures)
	p.objects = newObjects(p.upstream)
	p.defaultCert = objectOf(p.objects.certificates, table.DefaultCertificateKey)
	return p, nil
}

// Stats returns the counters. They change while the proxy serves.
func (p *Proxy) Stats() *Stats { return &p.stats }

// http2Config limits the bytes of bodies that a client's connection may hold in memory while no backend reads them.
func http2Config() *http.HTTP2Config {
	c := http2Pings()
	c.MaxReceiveBufferPerConnection, c.MaxReceiveBufferPerStream = 128<<10, 128<<10
	return c
}
