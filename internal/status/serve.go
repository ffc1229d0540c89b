// SPDX-License-Identifier: Apache-2.0

package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/internal/unixsocket"
)

// Server answers for this process on the admin socket.
type Server struct {
	id     Identity
	src    Source
	mux    *http.ServeMux
	socket string

	mu       sync.Mutex
	ready    time.Time
	stopping bool
	members  func() []Member
}

// NewServer makes a server that is not listening yet.
func NewServer(socket string, id Identity, src Source) *Server {
	s := &Server{id: id, src: src, socket: socket, mux: http.NewServeMux()}
	s.mux.HandleFunc("GET /v1/status", s.status)
	return s
}

// Handle adds something else that root may ask this process, such as POST /v1/encryption/rotate.
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// SetReady notes when the process first was able to serve.
func (s *Server) SetReady(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready.IsZero() {
		s.ready = at
	}
}

// SetMembers gives the reports a list of the cluster's machines.
func (s *Server) SetMembers(members func() []Member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.members = members
}

// SetStopping notes that the process is about to end.
func (s *Server) SetStopping() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = true
}

// Report describes this process.
func (s *Server) Report() Report {
	r := makeReport(s.id, s.src)
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Ready, r.Stopping = s.ready, s.stopping
	if s.members != nil {
		r.Members = s.members()
	}
	return r
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s.Report()) // an error means that the asker has gone
}

// Listen takes the socket, as [unixsocket.Listen].
func (s *Server) Listen() (net.Listener, error) {
	l, err := unixsocket.Listen(s.socket)
	if err != nil {
		return nil, fmt.Errorf("the admin socket: %w", err)
	}
	return l, nil
}

// Serve answers until the context ends. It closes the listener, which removes the socket.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{Handler: s.mux, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan error, 1) // one: the only value is sent before anyone may look
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("serving the admin socket: %w", err)
	case <-ctx.Done():
	}
	err := srv.Close()
	if served := <-done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	if err != nil {
		return fmt.Errorf("closing the admin socket: %w", err)
	}
	return nil
}
