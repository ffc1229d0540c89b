// SPDX-License-Identifier: Apache-2.0

package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// ErrInUse says that a live process answers on the socket.
var ErrInUse = errors.New("another coracle answers there")

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

// Listen takes the socket over from a process that has died, but never from one that lives: then it returns an error
// that is [ErrInUse].
func (s *Server) Listen() (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(s.socket), 0o755); err != nil {
		return nil, fmt.Errorf("making the run directory: %w", err)
	}
	if c, err := net.DialTimeout("unix", s.socket, time.Second); err == nil {
		_ = c.Close() // it was opened only to see whether someone is there
		return nil, fmt.Errorf("socket %s: %w", s.socket, ErrInUse)
	}
	if err := os.Remove(s.socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing the socket of an earlier process: %w", err)
	}
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		return nil, fmt.Errorf("listening on the admin socket: %w", err)
	}
	if err := os.Chmod(s.socket, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("closing the admin socket to others: %w", err), l.Close())
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
