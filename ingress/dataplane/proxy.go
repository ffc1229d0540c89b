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
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
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
	Unresponsive time.Duration
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
	options Options
	own     *tls.Certificate
	// standard is the table's default certificate.
	standard *certificate
	current  atomic.Pointer[routing]
	http1    *http.Transport
	h2c      *http.Transport
	https    *tlsClients // does not verify certificates, as in nginx
	// foreignClients is the client for servers outside of the cluster.
	foreignClients *http.Transport
	// dialer connects the transports. tunnelDialer connects tunnels.
	dialer, tunnelDialer *net.Dialer

	stats        Stats
	others       hostStats // of hosts that are not in counted
	limit        connections
	streams      limit // requests under way of clients that may have several on one connection
	budget       *memory
	shedAt       atomic.Int64  // when shed last closed connections
	mirrors      atomic.Int64  // mirrored requests under way
	mirrorMemory atomic.Int64  // bytes of their bodies that are held
	ending       chan struct{} // End closes it
	end          sync.Once
	complained   atomic.Bool // the log has a message about a trusted proxy without the PROXY protocol
	quicLimit    connections
	quicOpen     map[*quicConnection]struct{} // after their handshake; quicLimit.mu guards it
	quicShedAt   atomic.Int64                 // when shedQUIC last closed connections
	// handshakes is the number of QUIC handshakes under way.
	handshakes  atomic.Int64
	noHandshake timers.Signal // handshakes has become 0
	// memory is the key of the hashes by which correct logins are remembered.
	memory [32]byte
	// hashing limits how many passwords, and requests with expressions beyond freeSteps, are compared at a time: half
	// of the processors, so that other requests are served.
	hashing chan struct{}
	// hashWait limits how long a login or a request waits for a processor while others are compared.
	hashWait time.Duration
	// comparing are the turns of requests with expressions beyond freeSteps.
	comparing turns

	mu           sync.Mutex // guards what follows, for Apply
	sections     table.Sections
	problems     map[string]string // by key, except absent certificates
	endpoints    map[string]*endpointSet
	certificates map[string]*certificate
	authorities  map[string]*authorities
	tls          map[string]*backendTLS // by their table.BackendTLS in JSON
	patterns     map[patternKey]*pattern
	users        map[string]*userSet
	turns        map[string]chan struct{} // of logins, by namespace; each has the capacity 1
	limiters     map[string]*limiter      // by object
	alternatives map[string]*alternative  // by site
	quicKey      []byte
	counted      map[string]*hostStats // by the keys of hosts
	trusted      []netip.Prefix
	proxied      bool
	cluster      []netip.Prefix
	sweeps       uint64
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
		&o.HandoverTimeout: time.Hour, &o.Unresponsive: 30 * time.Second,
	} {
		if *field == 0 {
			*field = value
		}
	}
	o.MaxConnections = cmp.Or(o.MaxConnections, 4000)
	p := &Proxy{
		ending: make(chan struct{}), noHandshake: timers.NewSignal(), limit: newConnections(o.MaxConnections), budget: newMemory(),
		streams:   limit{most: o.MaxConnections, of: map[netip.Addr]int{}},
		quicLimit: newConnections(max(1, o.MaxConnections/quicFraction)),
		quicOpen:  map[*quicConnection]struct{}{},
		options:   o, own: own, dialer: backendDialer(o, false), tunnelDialer: backendDialer(o, true),
		sections: table.Sections{}, problems: map[string]string{}, endpoints: map[string]*endpointSet{},
		certificates: map[string]*certificate{},
		authorities:  map[string]*authorities{}, tls: map[string]*backendTLS{}, alternatives: map[string]*alternative{},
		counted: map[string]*hostStats{},
		users:   map[string]*userSet{}, turns: map[string]chan struct{}{}, limiters: map[string]*limiter{},
		patterns: map[patternKey]*pattern{},
		hashing:  make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)), hashWait: hashPatience, comparing: turns{of: map[string]*turn{}},
	}
	_, _ = rand.Read(p.memory[:]) // never fails
	p.standard = p.certificate(table.DefaultCertificate)
	p.current.Store(&routing{sites: map[string]*siteRoutes{}})
	p.http1, p.h2c = p.transport(false), p.transport(true)
	p.https = p.tlsClients(unverified())
	p.foreignClients = p.outside()
	return p, nil
}

// Stats returns the counters. They change while the proxy serves.
func (p *Proxy) Stats() *Stats { return &p.stats }

// transport makes the client of endpoints that speak HTTP/1.1, or HTTP/2 without TLS.
func (p *Proxy) transport(h2c bool) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(!h2c)
	protocols.SetUnencryptedHTTP2(h2c)
	return &http.Transport{
		Proxy: nil, DialContext: p.dial, Protocols: &protocols,
		DisableCompression: true, ExpectContinueTimeout: time.Second, MaxResponseHeaderBytes: maxResponseHeader,
		MaxIdleConns: 2048, MaxIdleConnsPerHost: 512, IdleConnTimeout: time.Minute,
		HTTP2: pings(),
	}
}

// tlsClients makes the clients of endpoints with TLS.
func (p *Proxy) tlsClients(config *tls.Config) *tlsClients {
	make := func(http2 bool) *http.Transport {
		t := p.transport(false)
		t.Protocols.SetHTTP1(!http2)
		t.Protocols.SetHTTP2(http2)
		t.TLSClientConfig = config.Clone()
		t.TLSHandshakeTimeout = p.options.HeaderTimeout
		return t
	}
	return &tlsClients{http1: make(false), http2: make(true)}
}

// to returns the client for a backend's endpoints.
func (p *Proxy) to(b *backend) *http.Transport {
	if !b.tls {
		if b.http2 {
			return p.h2c
		}
		return p.http1
	}
	clients := p.https
	if b.client != nil {
		clients = b.client.clients.Load()
	}
	if b.http2 {
		return clients.http2
	}
	return clients.http1
}

// http2Server limits the bytes of bodies that a client's connection may hold in memory while no backend reads them.
func http2Server() *http.HTTP2Config {
	c := pings()
	c.MaxReceiveBufferPerConnection, c.MaxReceiveBufferPerStream = 128<<10, 128<<10
	return c
}

// pings detects HTTP/2 peers that no longer respond while streams send nothing.
func pings() *http.HTTP2Config {
	return &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second}
}
