// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"

	"go.etcd.io/etcd/client/v3/kubernetes"

	"github.com/coracle-k8s/coracle/internal/memory"
	"github.com/coracle-k8s/coracle/test/storebench/load"
)

// load drives the store from within its process, as the API server does, for
// benchmarks.
func (n *node) load(ctx context.Context, args json.RawMessage) (any, error) {
	var a load.Spec
	if err := json.Unmarshal(args, &a); err != nil {
		return nil, fmt.Errorf("load wants a load.Spec: %w", err)
	}
	if a.Kind == load.Trim {
		return load.Result{}, memory.Trim(true)
	}
	// As many clients as there are: one each resource, in the API server.
	clients := make([]*kubernetes.Client, max(1, min(a.Clients, load.MaxConnections)))
	for i := range clients {
		clients[i] = n.store.Client()
		defer clients[i].Close()
	}
	return load.Run(ctx, clients, a)
}
