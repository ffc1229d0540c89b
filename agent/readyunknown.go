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
	// reportPause is the pause between two requests of a report: the kubelet has its own watch, which may show it the
	// unknown condition later.
	reportPause = 250 * time.Millisecond
	// reportTries is how many times a report is requested. After that time the kubelet's own interval, ten seconds, has
	// passed.
	reportTries = 40
)

// readyUnknown holds whether the Node's Ready condition in the API is unknown, or says that its kubelet is without the
// API. The leading server writes the former while it receives nothing from the node.
type readyUnknown struct {
	unknown   atomic.Bool
	mayChange timers.Signal // unknown may have become true
}

func newReadyUnknown() *readyUnknown { return &readyUnknown{mayChange: timers.NewSignal()} }

// follow observes the Node of that name. It calls there when the Node appears and when it is deleted.
func (v *readyUnknown) follow(nodes coreinformers.NodeInformer, name string, there func(bool)) error {
	if _, err := nodes.Informer().AddEventHandler(v.handler(name, there)); err != nil {
		return fmt.Errorf("agent: follow the own Node: %w", err)
	}
	return nil
}

func (v *readyUnknown) handler(name string, there func(bool)) cache.ResourceEventHandler {
	return cache.FilteringResourceEventHandler{
		FilterFunc: func(o any) bool {
			// it was deleted while the API could not be reached, as when a snapshot is restored
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
		v.mayChange.Send()
	}
}

// requestReports requests a report from the kubelet whenever the Node's condition in the API is unknown. That the
// condition can be read here means, mostly, that the API can be reached again. It runs until ctx is done.
func (v *readyUnknown) requestReports(ctx context.Context, report chan<- struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-v.mayChange:
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
