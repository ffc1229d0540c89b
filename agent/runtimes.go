// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/coracle-k8s/coracle/agent/runtimes"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/status"
)

// findRuntimes returns the container runtimes in these folders that can be used. A status line names them, and those
// that cannot be used. It returns an error if the node's default runtime is not among the usable ones.
func findRuntimes(ctx context.Context, o Options, dirs []string) ([]runtimes.Runtime, error) {
	found := runtimes.Find(dirs)
	usable, failures := runtimes.Query(ctx, found, runtimes.QueryTimeout)
	names := append([]string{clusterconfig.DefaultRuntime},
		convert.Slice(usable, func(r runtimes.Runtime) string { return r.Name })...)
	failed := errors.Join(failures...)
	if o.DefaultRuntime != "" && !slices.Contains(names, o.DefaultRuntime) {
		if !slices.ContainsFunc(found, func(r runtimes.Runtime) bool { return r.Name == o.DefaultRuntime }) {
			failed = fmt.Errorf("%s is not installed in %s", o.DefaultRuntime, strings.Join(dirs, ", "))
		}
		err := fmt.Errorf("agent: --default-runtime %s cannot be used: %w. Pods that run are not touched, but the node does not start. "+
			"Install it, or name one that was found: %s", o.DefaultRuntime, failed, strings.Join(names, ", "))
		o.statusPart("container runtimes").Set(status.Failed, err.Error())
		return nil, err
	}
	switch {
	case failed != nil:
		o.Logger.Warn("agent: a container runtime is left out until coracle restarts", "error", failed)
		o.statusPart("container runtimes").Set(status.Degraded, failed.Error()+"; left out, so no pod of its RuntimeClass starts on this node. "+
			"Others are not affected. Repair or remove the program, then restart coracle")
	case len(usable) > 0:
		o.statusPart("container runtimes").Set(status.Running, strings.Join(names, ", "))
	}
	return usable, nil
}

// labelRuntimes gives the Node a label for each runtime in found, and removes those of other runtimes. It writes
// nothing if the labels are right.
func labelRuntimes(ctx context.Context, nodes corev1client.NodeInterface, node *corev1.Node, found []runtimes.Runtime) error {
	change := map[string]any{}
	for _, name := range clusterconfig.Runtimes {
		label := clusterconfig.RuntimeLabel + name
		value, labelled := node.Labels[label]
		switch installed := slices.ContainsFunc(found, func(r runtimes.Runtime) bool { return r.Name == name }); {
		case installed && value != "true":
			change[label] = "true"
		case !installed && labelled:
			change[label] = nil
		}
	}
	if len(change) == 0 {
		return nil
	}
	return patchNode(ctx, nodes, node.Name, map[string]any{"metadata": map[string]any{"labels": change}})
}
