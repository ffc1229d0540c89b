// SPDX-License-Identifier: Apache-2.0

package cni_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/coracle-k8s/coracle/cni"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestWatchPodCIDRs(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	other := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.42.9.0/24"}}}
	client := fake.NewClientset(node, other)
	factory := informers.NewSharedInformerFactory(client, 0)
	cidrs := testenv.Must(cni.WatchPodCIDRs(factory.Core().V1().Nodes(), "n1"))(t)
	factory.Start(t.Context().Done())
	factory.WaitForCacheSync(t.Context().Done())
	testenv.Until(t, 2*time.Minute, "nodes are watched", func() bool { // a fake tells a watch nothing of what was before it
		return slices.ContainsFunc(client.Actions(), func(a clienttesting.Action) bool { return a.Matches("watch", "nodes") })
	})
	for _, step := range []struct {
		set  []string
		want string
	}{
		{[]string{"fd42::/64", "10.42.0.0/24"}, "[10.42.0.0/24 fd42::/64]"},
		{[]string{"10.42.1.0/24"}, "[10.42.1.0/24]"},
	} {
		node.Spec.PodCIDRs = step.set
		testenv.Must(client.CoreV1().Nodes().Update(t.Context(), node, metav1.UpdateOptions{}))(t)
		testenv.Equal(t, fmt.Sprint(<-cidrs), step.want, "")
	}
}
