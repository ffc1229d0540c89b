// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/coracle-k8s/coracle/ingress/outside"
)

// upstream connects to endpoints, and to servers outside of the cluster.
type upstream struct {
	// dialer connects the transports. tunnelDialer connects tunnels.
	dialer, tunnelDialer *net.Dialer
	handshakeTimeout     time.Duration // of TLS
	http1, h2c           *http.Transport
	https                *tlsTransports  // does not verify certificates, as in nginx
	outside              *http.Transport // of servers outside of the cluster
	// refuse reports whether an address may not be dialled. inCluster reports whether it is one of the cluster's.
	refuse, inCluster func(netip.Addr) bool
	failures          *atomic.Uint64 // Stats.DialFailures
}

func newUpstream(o Options, inCluster func(netip.Addr) bool, failures *atomic.Uint64) *upstream {
	u := &upstream{
		dialer: backendDialer(o, false), tunnelDialer: backendDialer(o, true), handshakeTimeout: o.HeaderTimeout, refuse: o.Refuse,
		inCluster: inCluster, failures: failures,
	}
	u.http1, u.h2c = u.transport(false), u.transport(true)
	u.https = u.makeTLSTransports(unverified())
	u.outside = u.outsideTransport(o.DialTimeout)
	return u
}

// transport makes the client of endpoints that speak HTTP/1.1, or HTTP/2 without TLS.
func (u *upstream) transport(h2c bool) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(!h2c)
	protocols.SetUnencryptedHTTP2(h2c)
	return &http.Transport{
		Proxy: nil, DialContext: u.dial, Protocols: &protocols,
		DisableCompression: true, ExpectContinueTimeout: time.Second, MaxResponseHeaderBytes: maxResponseHeader,
		MaxIdleConns: 2048, MaxIdleConnsPerHost: 512, IdleConnTimeout: time.Minute,
		HTTP2: http2Pings(),
	}
}

// makeTLSTransports makes the clients of endpoints with TLS.
func (u *upstream) makeTLSTransports(config *tls.Config) *tlsTransports {
	make := func(http2 bool) *http.Transport {
		t := u.transport(false)
		t.Protocols.SetHTTP1(!http2)
		t.Protocols.SetHTTP2(http2)
		t.TLSClientConfig = config.Clone()
		t.TLSHandshakeTimeout = u.handshakeTimeout
		return t
	}
	return &tlsTransports{http1: make(false), http2: make(true)}
}

func (u *upstream) client(b *backend) *http.Transport {
	if !b.tls {
		if b.http2 {
			return u.h2c
		}
		return u.http1
	}
	clients := u.https
	if b.client != nil {
		clients = b.client.clients.Load()
	}
	if b.http2 {
		return clients.http2
	}
	return clients.http1
}

// outsideTransport makes the client for servers outside of the cluster. Each address that a name resolves to is checked
// when it is dialled.
func (u *upstream) outsideTransport(dialTimeout time.Duration) *http.Transport {
	t := u.transport(false)
	t.Protocols.SetHTTP2(true)
	dialer := outside.Dialer(dialTimeout, func(a netip.Addr) bool {
		return u.refuse(a) || u.inCluster(a)
	})
	t.DialContext, t.MaxIdleConnsPerHost = dialer.DialContext, 32
	return t
}

// http2Pings detects HTTP/2 peers that no longer respond while streams send nothing.
func http2Pings() *http.HTTP2Config {
	return &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second}
}
