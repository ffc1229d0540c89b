// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// WatchPodCIDRs delivers the spec.podCIDRs of one Node, IPv4 first, whenever they change. Only the latest value waits.
// It adds a handler to an informer, which the caller runs. It reads only name and spec of a Node.
func WatchPodCIDRs(nodes coreinformers.NodeInformer, nodeName string) (<-chan []netip.Prefix, error) {
	w := &podCIDRWatch{nodeName: nodeName, updates: make(chan []netip.Prefix, 1)} // only the latest value waits for a slow reader
	_, err := nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    w.deliver,
		UpdateFunc: func(_, obj any) { w.deliver(obj) },
	})
	if err != nil {
		return nil, fmt.Errorf("watching the node's pod CIDRs: %w", err)
	}
	return w.updates, nil
}

type podCIDRWatch struct {
	nodeName     string
	updates      chan []netip.Prefix
	mu           sync.Mutex
	lastPrefixes []netip.Prefix
}

func (w *podCIDRWatch) deliver(obj any) {
	node, ok := obj.(*corev1.Node)
	if !ok || node.Name != w.nodeName {
		return
	}
	cidrs, err := podCIDRs(node)
	w.mu.Lock()
	defer w.mu.Unlock()
	// The API validates CIDRs, so an error would be a future format. The loss of all CIDRs is no reason to act.
	if err != nil || len(cidrs) == 0 || slices.Equal(cidrs, w.lastPrefixes) {
		return
	}
	w.lastPrefixes = cidrs
	timers.Replace(w.updates, cidrs)
}

func podCIDRs(node *corev1.Node) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range node.Spec.PodCIDRs {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("pod CIDR of node %s: %w", node.Name, err)
		}
		out = append(out, p)
	}
	slices.SortStableFunc(out, func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() })
	return out, nil
}
