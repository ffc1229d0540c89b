// SPDX-License-Identifier: Apache-2.0

// Package profiling serves diagnoses of a running process: which functions use processor time, what its goroutines wait
// for, and what holds its memory. The responses have the forms of runtime/pprof, which "go tool pprof" reads.
//
// It owns nothing and starts nothing by itself: between two requests it keeps no goroutine, timer or buffer. The Go
// runtime takes the samples for the heap profile even without this package (docs/adr/0055-diagnosis.md).
package profiling

import (
	"bytes"
	"fmt"
	"net/http"
	"runtime"
	"runtime/pprof"
	"strconv"
	"time"
)

// Paths of the requests. ProfilePath takes ?seconds=N, StacksPath ?grouped=true.
const (
	ProfilePath = "/v1/debug/profile"
	StacksPath  = "/v1/debug/stacks"
	HeapPath    = "/v1/debug/heap"
)

// MaxDuration is the maximum duration of a processor profile, so that a forgotten one ends.
const MaxDuration = 10 * time.Minute

// Handler serves the paths above. It checks no rights: its server does.
func Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+ProfilePath, profile)
	mux.HandleFunc("GET "+StacksPath, stacks)
	mux.HandleFunc("GET "+HeapPath, heap)
	return mux
}

// profile samples the processor time that this process uses, until the requested time is over or the client
// disconnects.
func profile(w http.ResponseWriter, r *http.Request) {
	seconds, err := strconv.Atoi(r.URL.Query().Get("seconds"))
	duration := time.Duration(seconds) * time.Second
	if err != nil || duration < time.Second || duration > MaxDuration {
		http.Error(w, fmt.Sprintf("a profile takes from 1 to %d seconds", MaxDuration/time.Second), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	var out bytes.Buffer // pprof writes from a goroutine of its own, which must not run into the Flush below
	if err := pprof.StartCPUProfile(&out); err != nil {
		http.Error(w, "another client is taking a profile of this process; try again when that one has ended", http.StatusConflict)
		return
	}
	// The beginning of the response shows that the profile has begun. Flush fails when the client has disconnected.
	if err := http.NewResponseController(w).Flush(); err == nil {
		end := time.NewTimer(duration)
		defer end.Stop()
		select {
		case <-end.C:
		case <-r.Context().Done():
		}
	}
	pprof.StopCPUProfile() // returns when everything is written
	if _, err := w.Write(out.Bytes()); err != nil {
		panic(http.ErrAbortHandler) // an incomplete profile must not look complete
	}
}

// stacks writes the stack of every goroutine and how long it has waited. With grouped=true it writes each different
// stack once, with the number of goroutines that have it.
func stacks(w http.ResponseWriter, r *http.Request) {
	form := 2
	if r.URL.Query().Get("grouped") == "true" {
		form = 1
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	write(w, "goroutine", form)
}

// heap writes a heap profile. It collects garbage first, so that the profile shows only live objects.
func heap(w http.ResponseWriter, _ *http.Request) {
	if runtime.MemProfileRate == 0 {
		http.Error(w, "this process takes no samples of its memory: it was started with GODEBUG=memprofilerate=0", http.StatusConflict)
		return
	}
	runtime.GC()
	w.Header().Set("Content-Type", "application/octet-stream")
	write(w, "heap", 0)
}

// write closes the connection when the response cannot be finished, so that an incomplete response does not look
// complete.
func write(w http.ResponseWriter, name string, form int) {
	if err := pprof.Lookup(name).WriteTo(w, form); err != nil {
		panic(http.ErrAbortHandler)
	}
}
