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

// guard restricts the addresses to which the authority's URLs can make this server connect. They may not lead into the
// cluster or to the machine. The host and port of the directory, and those of the proxy, may be anywhere, since the
// operator chooses them.
type guard struct {
	trusted sync.Map // host names and addresses with ports, unresolved
	dialer  *net.Dialer
	plain   net.Dialer
}

// newGuard makes a guard that refuses local addresses, and addresses for which refuse returns true. refuse may be nil.
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

// proxy is http.ProxyFromEnvironment. It also makes the proxy a trusted address.
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
