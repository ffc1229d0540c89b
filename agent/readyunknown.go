// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/tools/cache"
	nodeutil "k8s.io/component-helpers/node/util"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// reportPause is between two reports: the kubelet has a watch of its own, which may show it the
	// unknown condition later.
	reportPause = 250 * time.Millisecond
	// reportTries is how often a report is asked for; then the kubelet's own interval, ten seconds, has come.
	reportTries = 40
)

// readyUnknown is whether the API has it that nothing is known of this node, which the server that leads writes while
// it does not hear the node, or that its kubelet is without the API.
type readyUnknown struct {
	unknown atomic.Bool
	news    timers.Signal // there is something to look at
}

func newReadyUnknown() *readyUnknown { return &readyUnknown{news: timers.NewSignal()} }

// follow notes what the Node of that name says. there is called when it comes, and when it is deleted.
func (v *readyUnknown) follow(nodes coreinformers.NodeInformer, name string, there func(bool)) error {
	if _, err := nodes.Informer().AddEventHandler(v.handler(name, there)); err != nil {
		return fmt.Errorf("agent: follow the own Node: %w", err)
	}
	return nil
}

func (v *readyUnknown) handler(name string, there func(bool)) cache.ResourceEventHandler {
	return cache.FilteringResourceEventHandler{
		FilterFunc: func(o any) bool {
			// it went while the API was not reached, as when a snapshot is restored
			if final, ok := o.(cache.DeletedFinalStateUnknown); ok {
				return final.Key == name
			}
			n, ok := o.(*corev1.Node)
			return ok && n.Name == name
		},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc: func(o any) {
				v.observe(o.(*corev1.Node))
				there(true)
			},
			UpdateFunc: func(_, o any) { v.observe(o.(*corev1.Node)) },
			DeleteFunc: func(any) {
				v.unknown.Store(false)
				there(false)
			},
		},
	}
}

func (v *readyUnknown) observe(n *corev1.Node) {
	_, c := nodeutil.GetNodeCondition(&n.Status, corev1.NodeReady)
	unknown := c != nil && (c.Status == corev1.ConditionUnknown || c.Reason == reasonWithoutAPI)
	v.unknown.Store(unknown)
	if unknown {
		v.news.Send()
	}
}

// requestReports has the kubelet report whenever the API has it that nothing is known of this node: that it can be read
// here says that the API is reached again, mostly. It runs until ctx is done.
func (v *readyUnknown) requestReports(ctx context.Context, report chan<- struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-v.news:
		}
		for tries := 0; v.unknown.Load() && tries < reportTries; tries++ {
			select {
			case <-ctx.Done():
				return
			case report <- struct{}{}:
			}
			if !timers.Sleep(ctx, reportPause) {
				return
			}
		}
	}
}
