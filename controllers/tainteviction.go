// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	"k8s.io/kubernetes/pkg/controller/tainteviction"

	"github.com/coracle-k8s/coracle/controllers/lostnodes"
	"github.com/coracle-k8s/coracle/internal/recorder"
)

// newTaintEvictionController replaces upstream's constructor (cmd/kube-controller-manager/app/core.go). Beside the
// controller, which leaves the pods of nodes with an autonomy alone, it runs lostnodes.
func newTaintEvictionController(ctx context.Context, cc app.ControllerContext, toleration time.Duration) (app.Controller, error) {
	client, err := cc.ClientBuilder.Client("node-controller") // upstream's controller has that identity too
	if err != nil {
		return nil, err
	}
	core := cc.InformerFactory.Core().V1()
	evictions, err := tainteviction.New(ctx, client, core.Pods(), lostnodes.Nodes(core.Nodes()), names.TaintEvictionController)
	if err != nil {
		return nil, fmt.Errorf("make the controller of evictions: %w", err)
	}
	lost, err := lostnodes.New(lostnodes.Options{
		Client: client, Nodes: core.Nodes(), Toleration: toleration,
		AutonomyEnded: func(n *corev1.Node) { evictions.NodeUpdated(nil, n) },
		Recorder:      recorder.New(ctx, client, "lost-nodes"),
	})
	if err != nil {
		return nil, fmt.Errorf("watch lost nodes: %w", err)
	}
	return upstreamLoop{names.TaintEvictionController, func(ctx context.Context) {
		var beside sync.WaitGroup
		beside.Go(func() { lost.Run(ctx) })
		defer beside.Wait()
		evictions.Run(ctx)
	}}, nil
}
