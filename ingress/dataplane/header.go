// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
)

// headerProxy is a header that no server gets from a client. CGI programs read it as the variable HTTP_PROXY, which
// names the proxy of their own requests (CVE-2016-5385).
const headerProxy = "Proxy"

// hopByHop reports whether a header is for one connection only (RFC 9110, 7.6.1).
func hopByHop(name string) bool {
	switch name {
	case "Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings":
		return true
	}
	return false
}

// forwarding reports whether a header describes what proxies before the backend received. ingress-nginx sets some of
// these and this proxy does not. A backend may still trust them.
func forwarding(name string) bool {
	return strings.HasPrefix(name, "X-Forwarded-") || strings.HasPrefix(name, "X-Original-Forwarded-") || name == "Forwarded" ||
		name == "X-Real-Ip" || name == "X-Scheme"
}

// removeHopByHop removes headers of the connection and the headers that Connection names. Headers about forwarding stay
// even when Connection names them.
func removeHopByHop(h http.Header) {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			if name = textproto.CanonicalMIMEHeaderKey(textproto.TrimString(name)); name != "" && !forwarding(name) {
				delete(h, name)
			}
		}
	}
	for name := range h {
		if hopByHop(name) {
			delete(h, name)
		}
	}
}

// removeUnderscores removes headers with an underscore in their name. Some backends read it as a hyphen, which makes
// another name.
func removeUnderscores(h http.Header) {
	for name := range h {
		if strings.IndexByte(name, '_') >= 0 {
			delete(h, name)
		}
	}
}

// hasToken reports whether a comma-separated header holds a token, whatever its case.
func hasToken(values []string, token string) bool {
	for _, list := range values {
		for part := range strings.SplitSeq(list, ",") {
			if strings.EqualFold(textproto.TrimString(part), token) {
				return true
			}
		}
	}
	return false
}

// peer returns the address of the connection's other end, and whether it is a proxy whose forwarding headers are
// trusted.
func peer(remote string, trusted []netip.Prefix) (address string, fromProxy bool) {
	address, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote, false
	}
	if len(trusted) == 0 {
		return address, false
	}
	return address, inNetworks(address, trusted)
}

func inNetworks(address string, networks []netip.Prefix) bool {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return false
	}
	return contains(networks, a.Unmap().WithZone(""))
}

func contains(networks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

// hopsHeader counts the coracle proxies that a request has passed. The name of an authentication server, or an
// endpoint, may lead to an address of the proxy itself. Without a limit one request would then become thousands.
const (
	hopsHeader = "X-Coracle-Hops"
	maxHops    = 8
)

// hopsOf returns the number in the header. It returns maxHops for a value that is not a number.
func hopsOf(h http.Header) int {
	said := h[hopsHeader]
	if len(said) == 0 {
		return 0
	}
	n, err := strconv.Atoi(said[0])
	if err != nil || n < 0 {
		return maxHops
	}
	return n
}

// forwarded sets the headers about forwarding. It keeps such headers of the peer only when the peer is trusted.
func (r *request) forwarded(h http.Header) {
	var said []string
	if r.fromProxy {
		said = h["X-Forwarded-For"]
	} else {
		for name := range h {
			if forwarding(name) {
				delete(h, name)
			}
		}
	}
	list := r.peer
	if len(said) > 0 {
		list = strings.Join(said, ", ") + ", " + r.peer
	}
	// The six headers share one allocation.
	values := [...]string{list, realIP(list, r.routing.trusted), r.scheme, r.in.Host, r.port(), strconv.Itoa(r.hops + 1)}
	h[hopsHeader] = values[5:6:6]
	h["X-Forwarded-For"] = values[0:1:1]
	h["X-Real-Ip"] = values[1:2:2]
	for i, name := range [...]string{"X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port"} {
		if len(h[name]) == 0 { // a trusted peer did not set it
			h[name] = values[i+2 : i+3 : i+3]
		}
	}
}

// realIP returns the last address of an X-Forwarded-For list that is not a trusted proxy's. The client cannot have
// forged that address.
func realIP(list string, trusted []netip.Prefix) string {
	for {
		at := strings.LastIndexByte(list, ',')
		last := textproto.TrimString(list[at+1:])
		if at < 0 || len(trusted) == 0 || !inNetworks(last, trusted) {
			return last
		}
		list = list[:at]
	}
}

// client returns the address of the client. It uses X-Forwarded-For only from trusted peers.
func (r *request) client() string {
	if r.fromProxy {
		if said := r.in.Header["X-Forwarded-For"]; len(said) > 0 {
			return realIP(strings.Join(said, ", ")+", "+r.peer, r.routing.trusted)
		}
	}
	return r.peer
}

// proxiedPort returns the port at which the client connected to a proxy, by the PROXY protocol. It returns "" where the
// proxy names none.
func (r *request) proxiedPort() string {
	if !r.routing.proxied {
		return ""
	}
	to, _ := r.in.Context().Value(http.LocalAddrContextKey).(proxiedTo)
	return to.port
}

// port returns the port at which the client connected: the one that a proxy names by the PROXY protocol, else that of
// the Gateway's listener, else 80 or 443. Where a trusted peer names the scheme of another listener, it is that
// scheme's.
func (r *request) port() string {
	secure := r.scheme == "https"
	to := r.proxiedPort()
	if _, listens, gateway := strings.Cut(r.listener.site, ":"); to == "" && gateway && secure == r.listener.secure {
		to = listens[strings.LastIndexByte(listens, ':')+1:] // table.GatewaySite
	}
	switch {
	case to != "":
		return to
	case secure:
		return "443"
	}
	return "80"
}

// clientScheme returns the scheme of the client's URL: the connection's, unless a trusted peer names another. A proxy
// that received the connection at port 443 has ended TLS.
func (r *request) clientScheme() string {
	if r.fromProxy {
		if said := r.in.Header["X-Forwarded-Proto"]; len(said) == 1 && (said[0] == "https" || said[0] == "http") {
			return said[0]
		}
	}
	if r.listener.secure || r.proxiedPort() == "443" {
		return "https"
	}
	return "http"
}
