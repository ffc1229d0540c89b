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

	"github.com/coracle-k8s/coracle/internal/notify"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// verdictPause is between two answers to one verdict: the kubelet has a watch of its own, which may show it the
	// verdict later.
	verdictPause = 250 * time.Millisecond
	// verdictTries is how often it is answered; then the kubelet's own interval, ten seconds, has come.
	verdictTries = 40
)

// verdict is whether the API has it that nothing is known of this node, which the server that leads writes while it
// does not hear the node.
type verdict struct {
	unknown atomic.Bool
	news    notify.Signal // there is something to look at
}

func newVerdict() *verdict { return &verdict{news: notify.New()} }

// follow notes what the Node of that name says. there is called when it comes, and when it is deleted.
func (v *verdict) follow(nodes coreinformers.NodeInformer, name string, there func(bool)) error {
	if _, err := nodes.Informer().AddEventHandler(v.handler(name, there)); err != nil {
		return fmt.Errorf("agent: follow the own Node: %w", err)
	}
	return nil
}

func (v *verdict) handler(name string, there func(bool)) cache.ResourceEventHandler {
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

func (v *verdict) observe(n *corev1.Node) {
	unknown := false
	for _, c := range n.Status.Conditions {
		unknown = unknown || c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown
	}
	v.unknown.Store(unknown)
	if unknown {
		v.news.Send()
	}
}

// answer has the kubelet report whenever the API has it that nothing is known of this node: that it can be read here
// says that the API is reached again. It runs until ctx is done.
func (v *verdict) answer(ctx context.Context, report chan<- struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-v.news:
		}
		for tries := 0; v.unknown.Load() && tries < verdictTries; tries++ {
			select {
			case <-ctx.Done():
				return
			case report <- struct{}{}:
			}
			if !timers.Sleep(ctx, verdictPause) {
				return
			}
		}
	}
}
