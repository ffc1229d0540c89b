// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/controller-manager/pkg/clientbuilder"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/pkg/controller/nodeipam/ipam"
	netutils "k8s.io/utils/net"
)

// oneClient builds the same client for everybody.
type oneClient struct {
	clientbuilder.ControllerClientBuilder
	kubernetes.Interface
}

func (c oneClient) Client(string) (kubernetes.Interface, error) { return c.Interface, nil }

// TestNodeGetsOneCIDR runs upstream's allocator with an informer that hears of a node's status, again and again, and of
// its CIDR only in the end.
func TestNodeGetsOneCIDR(t *testing.T) {
	for _, lost := range []int{0, 3} { // the allocator tries three times before it draws another CIDR
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			stale := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "one", UID: "1", ResourceVersion: "1"}}
			client := fake.NewClientset(stale)
			events := watch.NewFakeWithChanSize(10, false) // more than there are
			client.PrependWatchReactor("nodes", clienttesting.DefaultWatchReactor(events, nil))
			client.PrependReactor("list", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
				return true, &v1.NodeList{ListMeta: metav1.ListMeta{ResourceVersion: "1"}, Items: []v1.Node{*stale}}, nil
			})
			left := lost
			client.PrependReactor("patch", "nodes", func(a clienttesting.Action) (bool, runtime.Object, error) {
				if left == 0 {
					return false, nil, nil
				}
				left--
				_, _, err := clienttesting.ObjectReaction(client.Tracker())(a)
				return true, nil, errors.Join(err, errors.New("the answer is lost"))
			})
			cc := seesOwnWrites(app.ControllerContext{ClientBuilder: oneClient{Interface: client}, InformerFactory: informers.NewSharedInformerFactory(client, 0)})
			c, err := cc.NewClient("node-controller")
			if err != nil {
				t.Fatal(err)
			}
			ranges, err := netutils.ParseCIDRs([]string{"10.42.0.0/16"})
			if err != nil {
				t.Fatal(err)
			}
			allocator, err := ipam.NewCIDRRangeAllocator(ctx, c, cc.InformerFactory.Core().V1().Nodes(), ipam.CIDRAllocatorParams{ClusterCIDRs: ranges, NodeCIDRMaskSizes: []int{24}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			cc.InformerFactory.StartWithContext(ctx)
			done := make(chan struct{})
			go func() { defer close(done); allocator.Run(ctx) }()
			cidrs := func() []string {
				node, err := client.Tracker().Get(v1.SchemeGroupVersion.WithResource("nodes"), "", "one")
				if err != nil {
					t.Fatal(err)
				}
				return node.(*v1.Node).Spec.PodCIDRs
			}
			for _, version := range []string{"2", "3"} {
				time.Sleep(time.Minute)
				status := stale.DeepCopy()
				status.ResourceVersion = version
				events.Modify(status)
			}
			time.Sleep(time.Minute)
			if got := cidrs(); !slices.Equal(got, []string{"10.42.0.0/24"}) {
				t.Errorf("%d answers to writes were lost; the node's CIDRs are %v", lost, got)
			}
			// Nothing is remembered once the informer has it.
			last := stale.DeepCopy()
			last.ResourceVersion, last.Spec.PodCIDRs = "4", cidrs()
			events.Modify(last)
			time.Sleep(time.Minute)
			if kept := cc.ClientBuilder.(cidrClients).n.written; len(kept) > 0 {
				t.Errorf("remembered for ever: %v", kept)
			}
			cancel()
			<-done
			cc.InformerFactory.Shutdown()
		})
	}
}
