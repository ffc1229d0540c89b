// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// runShim runs upstream's shim with one change: its task service is wrapped, so that a container's output goes through
// a drain.Pipe (see output.go).
func runShim() {
	// Containers must not inherit the agent's timer slack. If Set fails here, the agent could not set its slack either.
	_ = timers.Set(timers.Standard)
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			// Upstream has set 40%. Its collections cost each pod's start 10 ms of processor time, and save no memory:
			// every half minute, the shim returns what is free.
			debug.SetGCPercent(100)
			publisher, err := ic.GetByID(plugins.EventPlugin, "publisher")
			if err != nil {
				return nil, fmt.Errorf("find the event publisher: %w", err)
			}
			down, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
			if err != nil {
				return nil, fmt.Errorf("find the shutdown service: %w", err)
			}
			inner, err := task.NewTaskService(ic.Context, publisher.(shim.Publisher), down.(shutdown.Service))
			if err != nil {
				return nil, err
			}
			return newOutputService(inner, down.(shutdown.Service).Shutdown), nil
		},
	})
	shim.RunShim(context.Background(), manager.NewShimManager("io.containerd.runc.v2"))
}
