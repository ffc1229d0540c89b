// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// WatchPodCIDRs watches one Node and delivers its spec.podCIDRs, IPv4 first, whenever they change; the latest value
// wins. The channel is closed, and every goroutine gone, some time after ctx is done.
func WatchPodCIDRs(ctx context.Context, client kubernetes.Interface, nodeName string) <-chan []netip.Prefix {
	out := make(chan []netip.Prefix, 1) // the latest value waits here for a slow reader
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0,
		informers.WithTransform(trimNode),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, nodeName).String()
		}))
	informer := factory.Core().V1().Nodes().Informer()
	var last []netip.Prefix // handlers of one informer run one after another
	deliver := func(obj any) {
		node, ok := obj.(*corev1.Node)
		if !ok || node.Name != nodeName {
			return
		}
		cidrs, err := podCIDRs(node)
		if err != nil || len(cidrs) == 0 || slices.Equal(cidrs, last) {
			return // the API validates CIDRs: an error here means a future format
		}
		last = cidrs
		select {
		case <-out:
		default:
		}
		out <- cidrs
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    deliver,
		UpdateFunc: func(_, obj any) { deliver(obj) },
	})
	if err != nil { // only an informer that has stopped refuses, and this one has not started
		close(out)
		return out
	}
	factory.Start(ctx.Done())
	go func() {
		<-ctx.Done()
		factory.Shutdown()
		close(out)
	}()
	return out
}

// trimNode keeps what the pod network reads of a Node.
func trimNode(obj any) (any, error) {
	node, ok := obj.(*corev1.Node)
	if !ok {
		return obj, nil
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: node.Name, UID: node.UID, ResourceVersion: node.ResourceVersion},
		Spec:       corev1.NodeSpec{PodCIDR: node.Spec.PodCIDR, PodCIDRs: node.Spec.PodCIDRs},
	}, nil
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
