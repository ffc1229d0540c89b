// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"time"

	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	"k8s.io/kubernetes/pkg/controller/nodelifecycle"
	"k8s.io/kubernetes/pkg/controller/nodelifecycle/scheduler"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// taintPeriod is the interval at which the node lifecycle controller checks for nodes that need a NoExecute taint.
// Upstream checks ten times a second, which wakes an idle server more often than anything else (docs/adr/0040). It
// queues such nodes every five seconds.
const taintPeriod = 500 * time.Millisecond

// newNodeLifecycleController replaces upstream's constructor (cmd/kube-controller-manager/app/core.go).
func newNodeLifecycleController(ctx context.Context, cc app.ControllerContext) (app.Controller, error) {
	client, err := cc.ClientBuilder.Client("node-controller")
	if err != nil {
		return nil, err
	}
	o, core := cc.ComponentConfig.NodeLifecycleController, cc.InformerFactory.Core().V1()
	c, err := nodelifecycle.NewNodeLifecycleController(ctx, cc.InformerFactory.Coordination().V1().Leases(), quietPods{core.Pods()},
		core.Nodes(), cc.InformerFactory.Apps().V1().DaemonSets(), client, o.NodeMonitorPeriod.Duration, o.NodeStartupGracePeriod.Duration,
		o.NodeMonitorGracePeriod.Duration, o.NodeEvictionRate, o.SecondaryNodeEvictionRate,
		o.LargeClusterSizeThreshold, o.UnhealthyZoneThreshold)
	if err != nil {
		return nil, fmt.Errorf("make the node lifecycle controller: %w", err)
	}
	if err := slowTaints(ctx, c); err != nil {
		return nil, err
	}
	return upstreamLoop{names.NodeLifecycleController, c.Run}, nil
}

// quietPods notify the node lifecycle controller of no pods. It marks pods that it sees for the first time not ready if
// the Node is not ready, and at its start it sees all pods. A new leader would thus remove pods from their Services
// while a kubelet reports that its node is not ready. They would come back when that kubelet writes the pods' status
// again, within ten seconds. Without a new leader such pods keep their status, since their kubelet reports it.
// server/liveness marks the pods of dead nodes.
type quietPods struct{ coreinformers.PodInformer }

// Informer implements coreinformers.PodInformer.
func (p quietPods) Informer() cache.SharedIndexInformer {
	return quietInformer{p.PodInformer.Informer()}
}

type quietInformer struct{ cache.SharedIndexInformer }

// AddEventHandler implements cache.SharedInformer.
func (i quietInformer) AddEventHandler(cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return i.SharedIndexInformer.AddEventHandler(cache.ResourceEventHandlerFuncs{})
}

// slowTaints slows down the taint loop, which calls the rate limiter of each zone's queue in each round. It adds a zone
// without nodes, whose rate limiter waits and then refuses.
func slowTaints(ctx context.Context, c *nodelifecycle.Controller) error {
	zones, err := kubecompat.Field[map[string]*scheduler.RateLimitedTimedQueue](c, []string{"zoneNoExecuteTainter"})
	if err != nil {
		return fmt.Errorf("the node lifecycle controller is not what it was: %w", err)
	}
	none := scheduler.NewRateLimitedTimedQueue(taintLimiter{stopped: ctx.Done()})
	none.Add("", "")
	(*zones)["pause"] = none // no zone has this name: they have two colons, or are empty
	return nil
}

// taintLimiter is a rate limiter that refuses each request after waiting until the next multiple of taintPeriod.
type taintLimiter struct {
	flowcontrol.RateLimiter
	stopped <-chan struct{}
}

// TryAccept implements flowcontrol.PassiveRateLimiter.
func (p taintLimiter) TryAccept() bool {
	select {
	case <-p.stopped:
	case <-time.After(timers.Until(taintPeriod)):
	}
	return false
}
