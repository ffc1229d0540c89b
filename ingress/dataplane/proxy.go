// SPDX-License-Identifier: Apache-2.0

// Package dataplane serves HTTP by a table of hosts, certificates and endpoints: the data plane of the ingress proxy.
//
// It owns the listeners that it is given and the connections to endpoints, and routes requests by the table that Apply
// got last. It knows nothing of Kubernetes and keeps nothing; it reads files and resolves names for authentication
// servers outside alone. Its goroutines: those of net/http, two for each tunnel (tunnel.go), one for each Serve, and
// one for the agent's connection (control.go); Serve and Control.Serve wait for theirs.
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

// Options are what a Proxy is made with. The zero value of each field stands for its default.
type Options struct {
	// Logger gets panics as errors and the complaints of net/http at level debug; slog.Default() by default.
	Logger *slog.Logger
	// HeaderTimeout is how long a client may take for a TLS handshake or the header of a request; 10 s by default.
	HeaderTimeout time.Duration
	// IdleTimeout is how long nothing may move while a request is under way: between bytes of its body, until the
	// header of the response, between bytes of the response. Streams (gRPC, server-sent events) and tunnels may be
	// silent for longer; 60 s by default.
	IdleTimeout time.Duration
	// KeepAlive is how long a client's connection stays open without a request; 75 s by default.
	KeepAlive time.Duration
	// DialTimeout bounds each attempt to connect to an endpoint; 2 s by default.
	DialTimeout time.Duration
	// Unresponsive is how long the machine of a backend may be without an answer on a connection: then the connection
	// is closed. Whole seconds, 30 s by default.
	Unresponsive time.Duration
	// DrainTimeout bounds how long Serve waits for requests and tunnels when it ends; 30 s by default.
	DrainTimeout time.Duration
	// HandoverTimeout bounds the same when another process has taken over (ErrHandedOver); an hour by default.
	HandoverTimeout time.Duration
	// MaxConnections bounds the connections of clients, of which one source may have half; 4,000 by default. An idle
	// websocket over TLS takes less than 40 KB.
	MaxConnections int
	// Refuse reports whether an endpoint's address may not be dialled; RefuseLocal by default.
	Refuse func(netip.Addr) bool
}

const (
	maxRequestHeader = 32 << 10
	// maxFields bounds the names of fields in a request's header: short ones take ten times their length in memory.
	maxFields         = 256
	maxResponseHeader = 128 << 10
	// maxAttempts bounds how many endpoints a request tries to connect to.
	maxAttempts = 4
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
	https    *tlsClients // without regard to certificates, as nginx does
	// foreignClients is the client of servers outside of the cluster.
	foreignClients *http.Transport
	// dialer connects the transports, and tunnelDialer tunnels.
	dialer, tunnelDialer *net.Dialer

	stats        Stats
	others       hostStats // of hosts that counted does not have
	limit        limit
	streams      limit // requests under way of clients that may have several on a connection
	budget       *memory
	shedAt       atomic.Int64  // when shed closed connections last
	mirrors      atomic.Int64  // mirrored requests under way
	mirrorMemory atomic.Int64  // bytes of their bodies that are held
	ending       chan struct{} // closed by End
	end          sync.Once
	complained   atomic.Bool // of a trusted proxy without the PROXY protocol
	quicLimit    limit
	quicOpen     map[*quicConnection]struct{} // after their handshake; quicLimit.mu guards it
	quicShedAt   atomic.Int64                 // when shedQUIC closed connections last
	// handshakes are those of QUIC that are under way.
	handshakes  atomic.Int64
	noHandshake timers.Signal // handshakes has become 0
	// memory is the key of the hashes by which right logins are remembered.
	memory [32]byte
	// hashing bounds how many passwords are compared at a time: half of the processors, so that requests go on.
	hashing chan struct{}
	// hashWait bounds how long a login waits for a processor when many hashes are being compared.
	hashWait time.Duration

	mu           sync.Mutex // guards what follows, for Apply
	sections     table.Sections
	problems     map[string]string // by key, apart from absent certificates
	endpoints    map[string]*endpointSet
	certificates map[string]*certificate
	authorities  map[string]*authorities
	tls          map[string]*backendTLS // by what they are made of
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
	// Requests counts answered requests by the first digit of their status; those that ended without one are at 0.
	Requests [6]atomic.Uint64
	// Connections are those of clients that are open, Tunnels the websockets among the connections that were open once.
	Connections, Tunnels atomic.Int64
	// Refused counts connections that were closed because there were too many.
	Refused atomic.Uint64
	// DialFailures counts attempts to connect to endpoints that failed.
	DialFailures atomic.Uint64
	// MirrorsDropped counts mirrored requests that were not sent because there were too many, MirrorsFailed those that
	// had no answer.
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
		ending: make(chan struct{}), noHandshake: timers.NewSignal(), limit: limit{most: o.MaxConnections, of: map[netip.Addr]int{},
			open: map[*countedTCP]struct{}{}}, budget: newMemory(),
		streams:   limit{most: o.MaxConnections, of: map[netip.Addr]int{}},
		quicLimit: limit{most: max(1, o.MaxConnections/quicFraction), of: map[netip.Addr]int{}},
		quicOpen:  map[*quicConnection]struct{}{},
		options:   o, own: own, dialer: backendDialer(o, false), tunnelDialer: backendDialer(o, true),
		sections: table.Sections{}, problems: map[string]string{}, endpoints: map[string]*endpointSet{},
		certificates: map[string]*certificate{},
		authorities:  map[string]*authorities{}, tls: map[string]*backendTLS{}, alternatives: map[string]*alternative{},
		counted: map[string]*hostStats{},
		users:   map[string]*userSet{}, turns: map[string]chan struct{}{}, limiters: map[string]*limiter{},
		hashing: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)), hashWait: hashPatience,
	}
	_, _ = rand.Read(p.memory[:]) // never fails
	p.standard = p.certificate(table.DefaultCertificate)
	p.current.Store(&routing{sites: map[string]*siteRoutes{}})
	p.http1, p.h2c = p.transport(false), p.transport(true)
	p.https = p.tlsClients(unverified())
	p.foreignClients = p.outside()
	return p, nil
}

// Stats returns the counters, which go on counting.
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

// to is the client of a backend's endpoints.
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

// http2Server bounds what a client's connection can have lying here of bodies that no backend takes.
func http2Server() *http.HTTP2Config {
	c := pings()
	c.MaxReceiveBufferPerConnection, c.MaxReceiveBufferPerStream = 128<<10, 128<<10
	return c
}

// pings finds peers of HTTP/2 that are gone while streams are silent.
func pings() *http.HTTP2Config {
	return &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second}
}
