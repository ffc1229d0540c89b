// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"time"
	_ "unsafe" // go:linkname

	upstream "k8s.io/kubernetes/pkg/kubelet"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// syncNodeStatus is what upstream's kubelet does every ten seconds: it compares the Node, as it knows it, with how the
// machine is, and writes the difference. It takes a lock of its own. No exported function leads there. A version of
// upstream's without this method does not link.
//
//go:linkname syncNodeStatus k8s.io/kubernetes/pkg/kubelet.(*Kubelet).syncNodeStatus
func syncNodeStatus(k *upstream.Kubelet, ctx context.Context)

// fastNodeStatusUpdate is what upstream's kubelet does every 100 ms until its node is ready: it compares the Node, as
// it knows it, with how the machine is, and writes the difference once the node is ready. It says whether it is, and
// takes locks of its own.
//
//go:linkname fastNodeStatusUpdate k8s.io/kubernetes/pkg/kubelet.(*Kubelet).fastNodeStatusUpdate
func fastNodeStatusUpdate(k *upstream.Kubelet, ctx context.Context, timeout bool) bool

// A node that starts is looked at so often, for two seconds: it is ready 0.1 s sooner than by upstream's pauses.
const (
	hastenPause = 20 * time.Millisecond
	hastenTries = 100
)

// hasten reports a node that starts as ready when it is. Nothing is asked of the kubelet before all its modules run,
// which its loop's first round says.
func hasten(ctx context.Context, k *upstream.Kubelet) {
	for range hastenTries {
		if !k.LatestLoopEntryTime().IsZero() {
			if _, err := k.GetNode(ctx); err == nil && fastNodeStatusUpdate(k, ctx, false) {
				return
			}
		}
		if !timers.Sleep(ctx, hastenPause) {
			return
		}
	}
}

// handing hands a new kubelet out by a channel with room for it.
func handing(to chan<- *upstream.Kubelet) upstream.Option {
	return func(k *upstream.Kubelet) { to <- k }
}

// report has the kubelet report the node's status whenever asked to, until ctx is done.
func report(ctx context.Context, from <-chan *upstream.Kubelet, asked <-chan struct{}) {
	var k *upstream.Kubelet
	select {
	case <-ctx.Done():
		return
	case k = <-from:
	}
	hasten(ctx, k)
	for {
		select {
		case <-ctx.Done():
			return
		case <-asked:
			syncNodeStatus(k, ctx)
		}
	}
}
