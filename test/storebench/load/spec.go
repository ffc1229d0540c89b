// SPDX-License-Identifier: Apache-2.0

// Package load is what the store's benchmark does to a store: writes, reads and watches, through the client
// that the API server holds, measured where that client is. The same code runs inside a server's own process (our
// native client) and outside of it (etcd's client over gRPC, to either store). It never starts or judges a store.
package load

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/client/v3/kubernetes"
)

// MaxConnections is among how many client objects, hence connections, the
// workers are shared: the API server has one for each resource.
const MaxConnections = 16

// A Kind is what each client does, again and again.
type Kind string

// The kinds. "API" means the requests that upstream's storage layer sends.
const (
	APIWrite   Kind = "api-write"   // OptimisticPut: create each of Spec.Keys objects, then update them in turn
	Get        Kind = "get"         // linearizable get of one of Spec.Keys filled objects
	Fill       Kind = "fill"        // create objects 0 to Spec.Keys-1, once
	Trim       Kind = "trim"        // no load: give memory back, as coracle does every few minutes
	WatchFlood Kind = "watch-flood" // Spec.Ops puts as fast as possible, until all watchers have seen all
)

// Spec says what to run.
type Spec struct {
	Kind       Kind
	Clients    int           // how many do it at the same time
	For        time.Duration // measured time; the most there is if Ops is set
	Warmup     time.Duration // before it
	Ops        int64         // stop after so many operations, if set
	ValueBytes int
	Objects    bool   // values are API objects of about 1 KB, instead of ValueBytes random bytes
	Prefix     string // of what is written; ends with a slash
	ReadPrefix string // of the objects that Fill creates and that are read
	Keys       int    // how many objects
	Watchers   int
}

// Result is what was measured. Times are in milliseconds.
type Result struct {
	Rate       float64 // operations (for watches: events) a second
	P50, P99   float64
	Seconds    float64
	Measured   int64 // operations or events that the figures above are made of
	Total      int64 // operations with warming up
	Errors     int64
	FirstError string `json:",omitempty"`
}

// Run does what s says with the given clients, which the workers share evenly.
// It fails if nothing succeeded; single failures are counted.
func Run(ctx context.Context, clients []*kubernetes.Client, s Spec) (Result, error) {
	if len(clients) == 0 || s.Clients < 1 && s.Watchers < 1 {
		return Result{}, fmt.Errorf("load %q: no clients", s.Kind)
	}
	var r Result
	var err error
	if s.Kind == WatchFlood {
		r, err = fanOut(ctx, clients, s)
	} else {
		r, err = drive(ctx, clients, s)
	}
	if err == nil && r.Total == 0 {
		err = fmt.Errorf("nothing succeeded, %d failed: %s", r.Errors, r.FirstError)
	}
	if err != nil {
		return r, fmt.Errorf("load %q: %w", s.Kind, err)
	}
	return r, nil
}

// quantiles fills in what a set of latencies says. It sorts them.
func (r *Result) quantiles(all []time.Duration) {
	if len(all) == 0 {
		return
	}
	slices.Sort(all)
	at := func(q float64) float64 { return float64(all[int(q*float64(len(all)-1))]) / float64(time.Millisecond) }
	r.P50, r.P99 = at(.5), at(.99)
}
