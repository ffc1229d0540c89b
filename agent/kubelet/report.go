// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	_ "unsafe" // go:linkname

	upstream "k8s.io/kubernetes/pkg/kubelet"
)

// syncNodeStatus is what upstream's kubelet does every ten seconds: it compares the Node, as it knows it, with how the
// machine is, and writes the difference. It takes a lock of its own. No exported function leads there. A version of
// upstream's without this method does not link.
//
//go:linkname syncNodeStatus k8s.io/kubernetes/pkg/kubelet.(*Kubelet).syncNodeStatus
func syncNodeStatus(k *upstream.Kubelet, ctx context.Context)

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
	for {
		select {
		case <-ctx.Done():
			return
		case <-asked:
			syncNodeStatus(k, ctx)
		}
	}
}
