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

// taintPeriod is how often the node lifecycle controller looks for nodes that are to get a NoExecute taint. Upstream
// does so ten times a second, which is more than anything else wakes a server at rest (docs/adr/0040). It queues such
// nodes every five seconds.
const taintPeriod = 500 * time.Millisecond

// newNodeLifecycleController takes the place of upstream's constructor (cmd/kube-controller-manager/app/core.go).
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
	return loop{names.NodeLifecycleController, c.Run}, nil
}

// quietPods notify the node lifecycle controller of no pods. It makes pods that it sees for the first time not ready
// where the Node is not, and at its start sees all: a new leader took pods from their Services while a kubelet reported
// that its node was not ready, until that kubelet wrote the pods' status again, within ten seconds. Without a new
// leader such pods stay as they are, since their kubelet answers for them. Dead nodes' pods are marked by
// server/liveness.
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

// slowTaints slows down the loop that taints, which asks the queues of all zones each time whether they may go on: that
// of a zone without nodes may not, and takes its time to say so.
func slowTaints(ctx context.Context, c *nodelifecycle.Controller) error {
	zones, err := kubecompat.Field[map[string]*scheduler.RateLimitedTimedQueue](c, []string{"zoneNoExecuteTainter"})
	if err != nil {
		return fmt.Errorf("the node lifecycle controller is not what it was: %w", err)
	}
	none := scheduler.NewRateLimitedTimedQueue(pause{done: ctx.Done()})
	none.Add("", "")
	(*zones)["pause"] = none // names of zones have two colons, or are empty
	return nil
}

// pause is a rate limiter that refuses, at the next moment of taintPeriod.
type pause struct {
	flowcontrol.RateLimiter
	done <-chan struct{}
}

// TryAccept implements flowcontrol.PassiveRateLimiter.
func (p pause) TryAccept() bool {
	select {
	case <-p.done:
	case <-time.After(timers.Until(taintPeriod)):
	}
	return false
}
