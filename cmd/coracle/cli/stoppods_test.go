// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// stoppingServer is an admin socket whose process ends some reports after it has stopped its pods.
type stoppingServer struct {
	within  string // of the request
	result  status.StopPodsResult
	ending  atomic.Bool
	reports atomic.Int32 // until another process reports
}

func (s *stoppingServer) serve(t *testing.T) *status.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l := testenv.Must(net.Listen("unix", socket))(t)
	mux := http.NewServeMux()
	respond := func(w http.ResponseWriter, v any) { testenv.Check(t, json.NewEncoder(w).Encode(v)) }
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		r := status.Report{Started: time.Unix(1, 0)}
		if s.ending.Load() && s.reports.Add(-1) < 0 {
			r.Started = time.Unix(2, 0)
		}
		respond(w, r)
	})
	mux.HandleFunc("GET "+status.StopPodsPath, func(w http.ResponseWriter, _ *http.Request) { respond(w, status.StopPodsResult{Within: "1m0s"}) })
	mux.HandleFunc("POST "+status.StopPodsPath, func(w http.ResponseWriter, r *http.Request) {
		s.within = r.URL.Query().Get("within")
		s.ending.Store(s.result.Ends)
		respond(w, s.result)
	})
	server := &http.Server{Handler: mux}
	go func() { _ = server.Serve(l) }() // it ends with Close
	t.Cleanup(func() { testenv.Check(t, server.Close()) })
	return status.NewClient(socket)
}

// TestStopPodsWaitsForTheEnd: the command returns when the process has ended, so that a service manager that then stops
// it does not take its own signal for an impatient second one.
func TestStopPodsWaitsForTheEnd(t *testing.T) {
	s := &stoppingServer{result: status.StopPodsResult{Message: "stopped", Error: "one still runs", Ends: true}}
	s.reports.Store(3)
	message, err := stopPods(t.Context(), s.serve(t), 20*time.Second)
	testenv.WantError(t, err, "one still runs")
	testenv.Equal(t, message, "stopped", "it says")
	testenv.Equal(t, s.within, "20s", "the request's time:")
	testenv.True(t, s.reports.Load() < 0, "it returned while the process still ran")

	without := &stoppingServer{result: status.StopPodsResult{Message: "no node"}}
	message, err = stopPods(t.Context(), without.serve(t), 0)
	testenv.NoError(t, err)
	testenv.Equal(t, message+without.within, "no node", "it says")

	_, err = stopPods(t.Context(), status.NewClient(filepath.Join(t.TempDir(), "s")), 0)
	testenv.WantError(t, err, "coracle does not run")
}
