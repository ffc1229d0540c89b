// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"

	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/console"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/server/apiserver"
	"github.com/coracle-k8s/coracle/server/pki"
)

// listenConsole opens the console's port, so that one that is taken is known before anything starts.
func (s *Server) listenConsole(ctx context.Context) (err error) {
	if s.o.Board != nil {
		s.board.console = s.o.Board.Part("console")
	}
	switch {
	case s.o.Cluster.ConsoleDisabled():
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
func (s *Server) consoleHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(status.Console{Disabled: s.o.Cluster.ConsoleDisabled()}) // an error means that the client has ended
	})
}

// apiOfUsers is how a program on this machine reaches the API as anybody: without credentials.
func (s *Server) apiOfUsers() *rest.Config {
	return &rest.Config{Host: s.URL(), TLSClientConfig: rest.TLSClientConfig{CAData: s.pki.CAPEM(pki.ServerCA), ServerName: s.serverName(),
		NextProtos: []string{"http/1.1"}, // HTTP/2 keeps 4 MB for each stream that a tab does not read
	}}
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
		Listener: s.console, Certificate: s.pki.Serving, API: s.apiOfUsers(), OIDC: s.oidc, Ended: s.o.WorkEnded, Logger: s.log.With("part", "console"),
	})
	if err != nil {
		s.board.console.Set(status.Failed, err.Error())
		s.log.Error("the console is not served; everything else is", "error", err)
		return
	}
	s.board.console.Set(status.Stopped, "")
}
