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

// Server serves the admin socket of this process.
type Server struct {
	fixed  Report // what does not change while the process runs
	parts  *Board
	mux    *http.ServeMux
	socket string

	mu       sync.Mutex
	ready    time.Time
	stopping bool
	members  func() []Member
	level    func() *Level
	content  func() *Content
	failed   int // shims

	imageNotes func(context.Context) []string
}

// NewServer makes a server that does not listen yet. fixed has the fields of reports that do not change while the
// process runs.
func NewServer(socket string, fixed Report, parts *Board) *Server {
	s := &Server{fixed: fixed, parts: parts, socket: socket, mux: http.NewServeMux()}
	s.Handle("GET /v1/status", JSONHandler(s.reportWithImages))
	return s
}

// Handle adds another request for root, such as POST /v1/encryption/rotate.
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// SetReady records when the process was ready for the first time.
func (s *Server) SetReady(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready.IsZero() {
		s.ready = at
	}
}

// SetMembers sets the function that returns the cluster's members for reports.
func (s *Server) SetMembers(members func() []Member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.members = members
}

// SetLevel sets the function that returns the cluster's level for reports.
func (s *Server) SetLevel(level func() *Level) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.level = level
}

// SetContent sets the function that returns where images came from for reports.
func (s *Server) SetContent(content func() *Content) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.content = content
}

// SetFailedShims sets how many shims containerd could not load.
func (s *Server) SetFailedShims(failed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = failed
}

// SetImageNotes sets the function that returns sentences about images for the notes of each report that a client asks
// for. It may take a second.
func (s *Server) SetImageNotes(notes func(context.Context) []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.imageNotes = notes
}

// SetStopping records that the process is stopping.
func (s *Server) SetStopping() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = true
}

// Report returns the report of this process.
func (s *Server) Report() Report {
	r := makeReport(s.fixed, s.parts)
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Ready, r.Stopping, r.FailedShims = s.ready, s.stopping, s.failed
	if s.members != nil {
		r.Members = s.members()
	}
	if s.level != nil {
		r.Level = s.level()
	}
	if s.content != nil {
		r.Content = s.content()
	}
	return r
}

// reportWithImages returns the report with what other servers have to be asked for.
func (s *Server) reportWithImages(ctx context.Context) (Report, error) {
	r := s.Report()
	s.mu.Lock()
	notes := s.imageNotes
	s.mu.Unlock()
	if notes != nil {
		r.Notes = append(r.Notes, notes(ctx)...)
	}
	return r, nil
}

// JSONHandler answers requests with what answer returns, in JSON, or with its error and the code 503.
func JSONHandler[T any](answer func(context.Context) (T, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out, err := answer(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out) // an error means that the client has ended
	})
}

// Listen listens on the admin socket, as [unixsocket.Listen] does.
func (s *Server) Listen() (net.Listener, error) {
	l, err := unixsocket.Listen(s.socket)
	if err != nil {
		return nil, fmt.Errorf("the admin socket: %w", err)
	}
	return l, nil
}

// Serve serves requests until ctx is done. It closes the listener, which removes the socket.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{Handler: s.mux, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan error, 1) // one: the only value may be sent before it is received
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
