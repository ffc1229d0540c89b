// SPDX-License-Identifier: Apache-2.0

package acme

import (
	"cmp"
	"context"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/ingress/outside"
)

// guard keeps the authority, which chooses the URLs that it is asked at, from having this server ask others in the
// cluster or on the machine. The directory's own host and port, and those of the proxy, are the operator's choice and
// may be anywhere.
type guard struct {
	trusted sync.Map // addresses with ports, before names are resolved
	dialer  *net.Dialer
	plain   net.Dialer
}

// newGuard makes one that refuses local addresses and those that refuse, which may be nil, reports.
func newGuard(directory string, refuse func(netip.Addr) bool) *guard {
	const timeout = 10 * time.Second
	g := &guard{plain: net.Dialer{Timeout: timeout}, dialer: outside.Dialer(timeout, func(a netip.Addr) bool {
		return outside.Local(a) || refuse != nil && refuse(a)
	})}
	if u, err := url.Parse(directory); err == nil {
		g.trust(u)
	}
	return g
}

func (g *guard) trust(u *url.URL) {
	port := u.Port()
	port = cmp.Or(port, map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme])
	g.trusted.Store(net.JoinHostPort(u.Hostname(), port), true)
}

// proxy is http.ProxyFromEnvironment.
func (g *guard) proxy(r *http.Request) (*url.URL, error) {
	u, err := http.ProxyFromEnvironment(r)
	if u != nil {
		g.trust(u)
	}
	return u, err
}

func (g *guard) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if _, ok := g.trusted.Load(address); ok {
		return g.plain.DialContext(ctx, network, address)
	}
	return g.dialer.DialContext(ctx, network, address)
}
