// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"

	"github.com/coracle-k8s/coracle/internal/alpnmux"
	"github.com/coracle-k8s/coracle/internal/connlimit"
	"github.com/coracle-k8s/coracle/server/highfd"
	"github.com/coracle-k8s/coracle/server/localcreds"
)

// listen opens the API server's port before anything else happens, so that a start that cannot succeed changes nothing.
func listen(ctx context.Context, ip net.IP, port int) (*connlimit.Port, error) {
	host := ""
	if localcreds.Bound(ip) {
		host = ip.String()
	}
	waiting := &connlimit.Table{Max: alpnmux.MaxWaiting}
	l, err := connlimit.Listen(ctx, "api", "tcp", net.JoinHostPort(host, strconv.Itoa(port)), waiting)
	switch {
	case err == nil:
		l.Listener = highfd.Listener(l.Listener) // other servers take this one for dead when its port refuses them
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("the API server's port %d is taken by another program. Nothing was changed. `ss -ltnp 'sport = :%d'` shows which: "+
			"stop it, or choose another port with --https-listen-port", port, port)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("the API server may not listen on port %d: %w. Nothing was changed: run as root, or choose a port above 1023 with "+
			"--https-listen-port", port, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("the API server cannot listen on %s, because this machine does not have that address. Nothing was changed: correct "+
			"--bind-address, or leave it out to listen on all", host)
	}
	return nil, fmt.Errorf("the API server's port %d cannot be opened: %w. Nothing was changed", port, err)
}

func (s *Server) openPort() string {
	port := s.o.HTTPSPort
	if a, ok := s.listener.Addr().(*net.TCPAddr); ok {
		port = a.Port // the requested port differs only in tests, which request 0
	}
	return strconv.Itoa(port)
}

// peerAddress returns the address at which the other servers reach this one.
func (s *Server) peerAddress() string {
	return net.JoinHostPort(s.o.AdvertiseAddress.String(), s.openPort())
}
