// SPDX-License-Identifier: Apache-2.0

// Package profiling answers an operator who asks what a running process does: where its processor time goes, what its
// goroutines wait for, and what holds its memory. The answers have the forms of runtime/pprof, which "go tool pprof"
// reads.
//
// It owns nothing and starts nothing by itself: between two questions it keeps no goroutine, timer or buffer. What the
// Go runtime samples for the heap profile it samples in any case (docs/adr/0055-diagnosis.md).
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

// Paths of the questions. ProfilePath takes ?seconds=N, StacksPath ?grouped=true.
const (
	ProfilePath = "/v1/debug/profile"
	StacksPath  = "/v1/debug/stacks"
	HeapPath    = "/v1/debug/heap"
)

// MaxDuration bounds a processor profile: one that was forgotten ends.
const MaxDuration = 10 * time.Minute

// Handler answers the questions above. It checks no rights: its server does.
func Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+ProfilePath, profile)
	mux.HandleFunc("GET "+StacksPath, stacks)
	mux.HandleFunc("GET "+HeapPath, heap)
	return mux
}

// profile samples the processor time that this process uses, until the time is over or the asker has gone.
func profile(w http.ResponseWriter, r *http.Request) {
	seconds, err := strconv.Atoi(r.URL.Query().Get("seconds"))
	duration := time.Duration(seconds) * time.Second
	if err != nil || duration < time.Second || duration > MaxDuration {
		http.Error(w, fmt.Sprintf("a profile takes from 1 to %d seconds", MaxDuration/time.Second), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	var out bytes.Buffer // pprof writes from a goroutine of its own, which must not meet the Flush below
	if err := pprof.StartCPUProfile(&out); err != nil {
		http.Error(w, "another client is taking a profile of this process; try again when that one has ended", http.StatusConflict)
		return
	}
	// The answer's beginning tells that the profile has begun. Without it the asker has gone.
	if err := http.NewResponseController(w).Flush(); err == nil {
		end := time.NewTimer(duration)
		defer end.Stop()
		select {
		case <-end.C:
		case <-r.Context().Done():
		}
	}
	pprof.StopCPUProfile() // it returns when all is written
	if _, err := w.Write(out.Bytes()); err != nil {
		panic(http.ErrAbortHandler) // a part of it must not pass for the whole
	}
}

// stacks writes the stack of every goroutine with how long it has waited, or each different stack once with the number
// of goroutines that have it.
func stacks(w http.ResponseWriter, r *http.Request) {
	form := 2
	if r.URL.Query().Get("grouped") == "true" {
		form = 1
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	write(w, "goroutine", form)
}

// heap collects garbage first, so that the profile shows what is still held.
func heap(w http.ResponseWriter, _ *http.Request) {
	if runtime.MemProfileRate == 0 {
		http.Error(w, "this process takes no samples of its memory: it was started with GODEBUG=memprofilerate=0", http.StatusConflict)
		return
	}
	runtime.GC()
	w.Header().Set("Content-Type", "application/octet-stream")
	write(w, "heap", 0)
}

// write cuts the connection when the answer cannot be finished, so that a part of it does not pass for the whole.
func write(w http.ResponseWriter, name string, form int) {
	if err := pprof.Lookup(name).WriteTo(w, form); err != nil {
		panic(http.ErrAbortHandler)
	}
}
