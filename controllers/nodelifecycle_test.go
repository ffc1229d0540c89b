// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/kubernetes/pkg/controller/nodelifecycle"
	"k8s.io/kubernetes/pkg/controller/nodelifecycle/scheduler"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// countedLimiter refuses, and counts how often it is asked.
type countedLimiter struct {
	flowcontrol.RateLimiter
	asked *int
}

func (l countedLimiter) TryAccept() bool {
	*l.asked++
	return false
}

// TestNodesAreTaintedEveryTaintPeriod: upstream's controller looks for nodes to taint every taintPeriod, and ends with
// its context.
func TestNodesAreTaintedEveryTaintPeriod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		client := fake.NewClientset()
		all := informers.NewSharedInformerFactory(client, 0)
		c, err := nodelifecycle.NewNodeLifecycleController(ctx, all.Coordination().V1().Leases(), all.Core().V1().Pods(), all.Core().V1().Nodes(),
			all.Apps().V1().DaemonSets(), client, 5*time.Second, time.Minute, time.Minute, 0.1, 0.01, 50, 0.55)
		testenv.NoError(t, err)
		testenv.NoError(t, slowTaints(ctx, c))
		zones := testenv.Must(kubecompat.Field[map[string]*scheduler.RateLimitedTimedQueue](c, []string{"zoneNoExecuteTainter"}))(t)
		asked := 0
		(*zones)["counted"] = scheduler.NewRateLimitedTimedQueue(countedLimiter{asked: &asked})
		(*zones)["counted"].Add("node", "")
		all.StartWithContext(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			c.Run(ctx)
		}()
		time.Sleep(time.Minute) // of the bubble's clock: that long is counted
		if want := int(time.Minute / taintPeriod); asked < want/2 || asked > want+1 {
			t.Errorf("looked %d times in a minute, want %d", asked, want)
		}
		cancel()
		<-ended
		all.Shutdown()
	})
}
