// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"

	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/console"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/server/apiserver"
	"github.com/coracle-k8s/coracle/server/consoleservice"
	"github.com/coracle-k8s/coracle/server/pki"
)

// listenConsole opens the console's port, so that one that is taken is known before anything starts.
func (s *Server) listenConsole(ctx context.Context) (err error) {
	if s.o.Board != nil {
		s.board.console = s.o.Board.Part("console")
	}
	switch {
	case s.o.Cluster.NoConsole:
		s.board.console.Set(status.Disabled, "")
		return nil
	case s.o.ConsoleListen == "":
		s.board.console.Set(status.Disabled, "not for browsers of other machines (--console-listen); coracle console works")
		return nil
	}
	if s.oidc, err = s.o.consoleOIDC(); err != nil {
		return err
	}
	var lc net.ListenConfig
	if s.console, err = lc.Listen(ctx, "tcp", s.o.ConsoleListen); err != nil {
		return fmt.Errorf("opening the console's port, %s (--console-listen): %w", s.o.ConsoleListen, err)
	}
	return nil
}

// statusHandler answers at status.ClusterPath.
func (s *Server) statusHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		servers, err := s.roster.Report(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		out := s.serverReport(*servers)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out) // an error means that the client has ended
	})
}

// consoleHandler answers at status.ConsolePath.
func consoleHandler(disabled bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(status.Console{Disabled: disabled}) // an error means that the client has ended
	})
}

// apiOfUsers is how a program on this machine reaches the API as anybody: without credentials.
func (s *Server) apiOfUsers() *rest.Config {
	return &rest.Config{Host: s.URL(), TLSClientConfig: rest.TLSClientConfig{CAData: s.pki.CAPEM(pki.ServerCA), ServerName: s.serverName(),
		NextProtos: []string{"http/1.1"}, // HTTP/2 keeps 4 MB for each stream that a tab does not read
	}}
}

// consoleEndpoint is where others reach a console that listens at an address: at that one or, when it is all of the
// machine's, at the node's, of the family that Services have first. It is the zero value at loopback.
func (o *Options) consoleEndpoint(listening net.Addr) netip.AddrPort {
	tcp, isTCP := listening.(*net.TCPAddr)
	if !isTCP {
		return netip.AddrPort{}
	}
	at := tcp.AddrPort()
	switch ip := at.Addr().Unmap(); {
	case ip.IsLoopback():
		return netip.AddrPort{}
	case !ip.IsUnspecified():
		return netip.AddrPortFrom(ip, at.Port())
	}
	own, _ := netip.AddrFromSlice(o.AdvertiseAddress)
	for _, ip := range o.NodeIPs {
		a, _ := netip.AddrFromSlice(ip)
		if len(o.Cluster.ServiceCIDRs) > 0 && a.Unmap().Is4() == o.Cluster.ServiceCIDRs[0].Addr().Is4() {
			own = a
			break
		}
	}
	return netip.AddrPortFrom(own.Unmap(), at.Port())
}

// keepConsoleService puts this server's part of the console's Service right once the API is ready.
func (s *Server) keepConsoleService(ctx context.Context, api *apiserver.Server) {
	select {
	case <-ctx.Done():
		return
	case <-api.Ready():
	}
	o := consoleservice.Options{Config: api.LoopbackConfig(), Server: s.o.NodeName, Node: s.o.OwnNode, Logger: s.log}
	if s.console != nil {
		o.At = s.o.consoleEndpoint(s.console.Addr())
	}
	consoleservice.Keep(ctx, o)
}

// serveConsole serves the console from when the API is ready until ctx is done.
func (s *Server) serveConsole(ctx context.Context, api *apiserver.Server) {
	if s.console == nil {
		return
	}
	select {
	case <-ctx.Done():
		return
	case <-api.Ready():
	}
	s.board.console.Set(status.Running, "at https://"+s.console.Addr().String())
	err := console.ServeRemote(ctx, console.RemoteOptions{
		Listener: s.console, Certificate: s.pki.Serving, API: s.apiOfUsers(),
		OIDC: s.oidc, Ended: s.o.WorkEnded, Logger: s.log.With("part", "console"),
	})
	if err != nil {
		s.board.console.Set(status.Failed, err.Error())
		s.log.Error("the console is not served; everything else is", "error", err)
		return
	}
	s.board.console.Set(status.Stopped, "")
}
