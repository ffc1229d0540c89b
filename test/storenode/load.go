// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime/pprof"
	"time"

	"go.etcd.io/etcd/client/v3/kubernetes"

	"github.com/coracle-k8s/coracle/internal/memory"
	"github.com/coracle-k8s/coracle/test/storebench/load"
)

// loadArgs are what the load operation takes. With a Profile and no Kind it
// only profiles for that time, while others make the load.
type loadArgs struct {
	load.Spec
	Profile string // a file for a CPU profile of this process meanwhile
}

// load drives the store from within its process, as the API server does, for
// benchmarks.
func (n *node) load(ctx context.Context, args json.RawMessage) (any, error) {
	var a loadArgs
	if err := json.Unmarshal(args, &a); err != nil {
		return nil, fmt.Errorf("load wants a load.Spec: %w", err)
	}
	if a.Profile != "" {
		stop, err := startProfile(a.Profile)
		if err != nil {
			return nil, err
		}
		defer stop()
	}
	switch a.Kind {
	case "":
		select {
		case <-time.After(a.For):
		case <-ctx.Done():
		}
		return load.Result{}, nil
	case load.Trim:
		return load.Result{}, memory.Trim()
	}
	// As many clients as there are: one each resource, in the API server.
	clients := make([]*kubernetes.Client, max(1, min(a.Clients, load.MaxConnections)))
	for i := range clients {
		clients[i] = n.store.Client()
		defer clients[i].Close()
	}
	return load.Run(ctx, clients, a.Spec)
}

func startProfile(path string) (stop func(), err error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("profile: %w", err)
	}
	return func() {
		pprof.StopCPUProfile()
		_ = f.Close()
	}, nil
}
