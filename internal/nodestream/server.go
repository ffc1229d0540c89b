// SPDX-License-Identifier: Apache-2.0

// Package nodestream streams a state of the cluster to nodes: the state first, then each change. A Server is the
// handler of a stream's path in a server's API. A Client follows a stream for as long as it runs. What a stream holds,
// and who may receive it, is its user's decision.
package nodestream

import (
	"cmp"
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/metrics"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/server/routine"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// minDuration is the shortest duration of a stream. The longest is twice that, as with client-go's watches. After
	// that nodes spread over servers again, and their rights are checked again.
	minDuration = 5 * time.Minute
	// beginTimeout limits the time until a stream's first state.
	beginTimeout = 10 * time.Second
)

// Server is the handler of a stream of states of type T. All fields but State and Duration are required.
type Server[T any] struct {
	// Subject is what is streamed, in errors for clients.
	Subject string
	State   timers.Value[T]
	// Refusal returns why a client may not follow the stream, as an HTTP code and a text, or code 0.
	Refusal func(client user.Info, r *http.Request) (code int, text string)
	// Begin waits until State is not older than the call. The stream calls end at its end, also if there was an error.
	Begin func(context.Context) (end func(), err error)
	// Writer returns a function that writes what a client lacks of a state. It is called first with the state at the
	// beginning, and then after each change. It returns whether it has written. The stream ends with its first error.
	Writer func(*http.Request) func(to io.Writer, now T) (written bool, err error)
	// Duration is the duration of a stream in tests.
	Duration time.Duration
}

// ServeHTTP implements http.Handler. Like a watch, a stream is served without the stack of the filters that it passed.
func (s *Server[T]) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	client, ok := request.UserFrom(r.Context())
	if r.Method != http.MethodGet {
		http.Error(w, s.Subject+" can only be read", http.StatusMethodNotAllowed)
		return
	}
	if !ok {
		http.Error(w, "the request has no user", http.StatusForbidden)
		return
	}
	if code, text := s.Refusal(client, r); code != 0 {
		http.Error(w, text, code)
		return
	}
	info, _ := request.RequestInfoFrom(r.Context())
	serve := func() {
		metrics.RecordLongRunning(r, info, metrics.APIServerComponent, func() { s.stream(w, r) })
	}
	if task := routine.TaskFrom(r.Context()); task != nil {
		task.Func = serve
	} else {
		serve()
	}
}

// stream sends the state, and then its changes, until the request ends or the stream's time is over.
func (s *Server[T]) stream(w http.ResponseWriter, r *http.Request) {
	flusher, ok := w.(http.Flusher)
	if !ok {
		http.Error(w, "this connection does not support streaming", http.StatusNotImplemented)
		return
	}
	begin, cancel := context.WithTimeout(r.Context(), beginTimeout)
	end, err := s.Begin(begin)
	cancel()
	defer end()
	if err != nil {
		http.Error(w, s.Subject+" cannot be read on this server now: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	duration := cmp.Or(s.Duration, minDuration+rand.N(minDuration))
	over := time.NewTimer(duration)
	defer over.Stop()
	w.Header().Set("Content-Type", "application/json")
	for write := s.Writer(r); ; {
		now, changed := s.State.Get()
		written, err := write(w, now)
		if err != nil { // the client has ended
			return
		}
		if written {
			flusher.Flush()
		}
		select {
		case <-r.Context().Done():
			return
		case <-over.C:
			return
		case <-changed:
		}
	}
}
