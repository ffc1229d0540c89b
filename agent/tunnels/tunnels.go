// SPDX-License-Identifier: Apache-2.0

// Package tunnels keeps a connection open from this node to each of the cluster's servers (internal/tunnel): through it a
// server reaches the kubelet and the node's pods, and hears that the node lives.
//
// It owns these connections and decides what they may lead to: this node's own addresses. It never chooses the servers.
package tunnels

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/internal/join"
	"github.com/coracle-k8s/coracle/internal/tunnel"
)

const (
	// lookEvery is how often the list of servers is compared with the connections that there are.
	lookEvery = 2 * time.Second
	// firstPause and maxPause are how long to wait before a server is tried again.
	firstPause, maxPause = 500 * time.Millisecond, 5 * time.Second
	// dialTimeout bounds connecting to a server, with TLS.
	dialTimeout = 5 * time.Second
	// lasting is how long a connection has to last to count as one: a server that does not want this node hangs up at once.
	lasting = 10 * time.Second
)

// Options are all required but PodCIDRs, Now and Logger.
type Options struct {
	// Servers lists the servers as host:port.
	Servers func() []string
	// NodePair is the file with the node's certificate and key, ServerCAFile that with the authority of the servers. They are
	// read again for each connection.
	NodePair, ServerCAFile string
	// NodeIPs are this node's addresses, PodCIDRs the networks of its pods as they are known now.
	NodeIPs  []netip.Addr
	PodCIDRs func() []netip.Prefix
	// Now is the time at which a server's certificate is checked; nil means time.Now.
	Now    func() time.Time
	Logger *slog.Logger
}

// Run keeps the connections until ctx is done, and returns when none is left.
func Run(ctx context.Context, o Options) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stops := map[string]context.CancelFunc{}
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
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
				running.Go(func() { o.keep(ctx, s) })
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// keep keeps the connection to one server until ctx is done.
func (o *Options) keep(ctx context.Context, server string) {
	node := tunnel.Node{Allowed: o.allowed}
	last := ""
	for pause := firstPause; ctx.Err() == nil; pause = min(2*pause, maxPause) {
		c, err := o.dial(ctx, server)
		if err == nil {
			began := time.Now()
			err = node.Serve(ctx, c)
			if time.Since(began) > lasting {
				pause, last = firstPause, ""
			}
		}
		if ctx.Err() != nil {
			return
		}
		if text := err.Error(); text != last {
			last = text
			o.Logger.Info("no connection to a server; it is tried again", "server", server, "reason", text)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause/2)): // all nodes lose a server at the same moment
		}
	}
}

// allowed says whether an address is this node's own.
func (o *Options) allowed(to netip.AddrPort) bool {
	a := to.Addr()
	if slices.Contains(o.NodeIPs, a) {
		return true
	}
	return o.PodCIDRs != nil && slices.ContainsFunc(o.PodCIDRs(), func(p netip.Prefix) bool { return p.Contains(a) })
}

// dial connects to a server and lets it show that it is one of the cluster's.
func (o *Options) dial(ctx context.Context, server string) (net.Conn, error) {
	pair, err := tls.LoadX509KeyPair(o.NodePair, o.NodePair)
	if err != nil {
		return nil, fmt.Errorf("reading the node's certificate: %w", err)
	}
	authority, err := os.ReadFile(o.ServerCAFile)
	if err != nil {
		return nil, fmt.Errorf("reading the cluster's authority: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		return nil, fmt.Errorf("%s holds no certificate", o.ServerCAFile)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{tunnel.Protocol},
		Certificates: []tls.Certificate{pair},
		// The address may be any that leads to a server; VerifyConnection says what is checked instead.
		InsecureSkipVerify: true,
		VerifyConnection:   func(s tls.ConnectionState) error { return verify(s, roots, o.Now()) },
	}}
	return d.DialContext(ctx, "tcp", server)
}

// verify checks that the other end is a server of the cluster: nodes have certificates of the same authority, with other
// common names.
func verify(s tls.ConnectionState, roots *x509.CertPool, now time.Time) error {
	if s.NegotiatedProtocol != tunnel.Protocol {
		return errors.New("it is no server that nodes connect to")
	}
	leaf := s.PeerCertificates[0]
	v := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, c := range s.PeerCertificates[1:] {
		v.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(v); err != nil {
		return err
	}
	if leaf.Subject.CommonName != join.ServerName {
		return fmt.Errorf("it is no server: its certificate is that of %s", leaf.Subject.CommonName)
	}
	return nil
}
