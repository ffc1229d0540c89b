// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"time"
	_ "unsafe" // go:linkname

	upstream "k8s.io/kubernetes/pkg/kubelet"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// syncNodeStatus compares the Node, as the kubelet knows it, with the machine's state, and writes the difference.
// Upstream's kubelet calls it every ten seconds. It takes its own lock. Upstream does not export it. With a version of
// upstream's without this method the program does not link.
//
//go:linkname syncNodeStatus k8s.io/kubernetes/pkg/kubelet.(*Kubelet).syncNodeStatus
func syncNodeStatus(k *upstream.Kubelet, ctx context.Context)

// fastNodeStatusUpdate compares the Node, as the kubelet knows it, with the machine's state, and writes the difference
// once the node is ready. It returns whether the node is ready. Upstream's kubelet calls it every 100 ms until then. It
// takes its own locks.
//
//go:linkname fastNodeStatusUpdate k8s.io/kubernetes/pkg/kubelet.(*Kubelet).fastNodeStatusUpdate
func fastNodeStatusUpdate(k *upstream.Kubelet, ctx context.Context, timeout bool) bool

// hastenPause is the interval of checks of a starting node, hastenTries their number: two seconds in all. The node is
// ready 0.1 s sooner than with upstream's pauses.
const (
	hastenPause = 20 * time.Millisecond
	hastenTries = 100
)

// reportReadySoon reports a starting node as ready when it is. It calls no other function of the kubelet before all its
// modules run, which the first round of its loop shows.
func reportReadySoon(ctx context.Context, k *upstream.Kubelet) {
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

// report makes the kubelet report the node's status for each value that asked receives, until ctx is done.
func report(ctx context.Context, from <-chan *upstream.Kubelet, asked <-chan struct{}) {
	var k *upstream.Kubelet
	select {
	case <-ctx.Done():
		return
	case k = <-from:
	}
	reportReadySoon(ctx, k)
	for {
		select {
		case <-ctx.Done():
			return
		case <-asked:
			syncNodeStatus(k, ctx)
		}
	}
}
