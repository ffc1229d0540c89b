//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"errors"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// crowd is how many pods a Deployment has whose leader is stopped while it makes and binds them.
const crowd = 60

// TestLeaderOfEndedTermChangesNothing: the server that leads is stopped while its controllers make pods and its
// scheduler binds them. Another one goes on, and everything is deleted. When the first one wakes up it changes nothing,
// although it had writes under way, and although it has heard of no other server for a while.
func TestLeaderOfEndedTermChangesNothing(t *testing.T) {
	harness.ByHand(t)
	c := New(t, 3, 0)
	tries := 4
	if whole {
		tries = 20
	}
	midway := 0
	for i := 0; i < tries || midway == 0 && i < 5*tries; i++ { // until one was stopped in time
		leader := c.MustLeader()
		others := Without(c.Servers, leader)
		api := c.Ask(others[0])
		c.fakeNode(t, api)
		name := fmt.Sprintf("crowd-%d", i)
		c.deploy(t, api, name)
		harness.Eventually(t, soon, "some of the pods have a node", func() error {
			if _, bound, err := pods(t, api); err != nil || bound == 0 {
				return fmt.Errorf("%d: %w", bound, err)
			}
			return nil
		})
		leader.Pause()
		harness.Eventually(t, soon, "the pods that the stopped leader has left", func() error {
			all, bound, err := pods(t, api)
			if err == nil && bound < crowd {
				midway++
				t.Logf("the leader was stopped when of %d pods %d were made and %d had a node", crowd, all, bound)
			}
			return err
		})
		// The other one makes the rest, and binds them.
		harness.Eventually(t, soon, "all of the pods have a node", func() error {
			all, bound, err := pods(t, api)
			if err == nil && (all != crowd || bound != crowd) {
				err = fmt.Errorf("%d of %d", bound, all)
			}
			return err
		})
		c.clear(t, api, name)
		harness.Eventually(t, soon, "the stopped leader is no more behind the Service kubernetes", func() error {
			slice, err := api.DiscoveryV1().EndpointSlices("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
			if err == nil && readyIn(slice)[leader.IP] {
				err = errors.New("it is")
			}
			return err
		})
		watching := c.Client(others[0].Machine, own, 0)
		events := testenv.Must(watching.CoreV1().Pods("default").Watch(t.Context(), metav1.ListOptions{}))(t)
		behind := testenv.Must(
			watching.DiscoveryV1().EndpointSlices("default").Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=kubernetes"}))(t)
		leader.Resume()
		quiet := time.NewTimer(5 * time.Second) // that nothing happens in a time has no event that ends it
		for waiting := true; waiting; {
			select {
			case e, open := <-events.ResultChan():
				testenv.Require(t, open, "the watch ended")
				t.Errorf("after a leader woke up whose term is over: %s of %T", e.Type, e.Object)
			case e, open := <-behind.ResultChan():
				slice, ok := e.Object.(*discoveryv1.EndpointSlice)
				testenv.Require(t, open && ok, "the watch of the Service's servers: %v, %v", open, e.Object)
				for _, s := range others {
					if !readyIn(slice)[s.IP] {
						t.Errorf("after a leader woke up whose term is over, server %d is not behind the Service kubernetes: %v", s.Number, slice.Endpoints)
					}
				}
			case <-quiet.C:
				waiting = false
			}
		}
		events.Stop()
		behind.Stop()
		c.WaitWhole()
	}
	testenv.True(t, midway != 0, "no leader was stopped while it wrote: this shows nothing")
}

// readyIn are the addresses in a slice that are ready.
func readyIn(slice *discoveryv1.EndpointSlice) map[string]bool {
	out := map[string]bool{}
	for _, e := range slice.Endpoints {
		for _, ip := range e.Addresses {
			out[ip] = *e.Conditions.Ready
		}
	}
	return out
}

// clear deletes a Deployment and its pods, and returns when no controller has anything to do about them any more. The
// ReplicaSet is first set to have none: one that is only deleted may have a pod made again by a controller that has not
// heard of it yet.
func (c *Cluster) clear(t *testing.T, api kubernetes.Interface, name string) {
	t.Helper()
	deployments, sets := api.AppsV1().Deployments("default"), api.AppsV1().ReplicaSets("default")
	harness.Eventually(t, soon, "the Deployment is to have no pods", func() error {
		_, err := deployments.Patch(t.Context(), name, types.MergePatchType, []byte(`{"spec":{"replicas":0}}`), metav1.PatchOptions{})
		return err
	})
	now := int64(0)
	harness.Eventually(t, soon, "no pod is left, and the controllers have seen that", func() error {
		list, err := sets.List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for i := range list.Items {
			if s := &list.Items[i]; *s.Spec.Replicas != 0 || s.Status.ObservedGeneration < s.Generation {
				return fmt.Errorf("the ReplicaSet %s is to have %d", s.Name, *s.Spec.Replicas)
			}
		}
		if err := api.CoreV1().Pods("default").DeleteCollection(t.Context(), metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{}); err != nil {
			return err
		}
		all, _, err := pods(t, api)
		for i := range list.Items {
			all += int(list.Items[i].Status.Replicas)
		}
		if err == nil && all > 0 {
			err = fmt.Errorf("%d are left", all)
		}
		return err
	})
	harness.Eventually(t, soon, "the Deployment is gone", func() error {
		if err := ignoreNotFound(deployments.Delete(t.Context(), name, metav1.DeleteOptions{})); err != nil {
			return err
		}
		list, err := sets.List(t.Context(), metav1.ListOptions{})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d ReplicaSets are left", len(list.Items))
		}
		return err
	})
}

// fakeNode makes a node without a kubelet that has room for everything, or makes it ready again.
func (c *Cluster) fakeNode(t *testing.T, api kubernetes.Interface) {
	t.Helper()
	room := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1000"), corev1.ResourceMemory: resource.MustParse("1Ti"), corev1.ResourcePods: resource.MustParse("1000")}
	nodes := api.CoreV1().Nodes()
	harness.Eventually(t, soon, "the node that is none is made again", func() error {
		if err := ignoreNotFound(nodes.Delete(t.Context(), "fake", metav1.DeleteOptions{})); err != nil { // there is none at first
			return err
		}
		_, err := nodes.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "fake"}}, metav1.CreateOptions{})
		return err
	})
	harness.Eventually(t, soon, "the node that is none is ready", func() error {
		n, err := nodes.Get(t.Context(), "fake", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if Ready(n) != corev1.ConditionTrue {
			n.Status = corev1.NodeStatus{Capacity: room, Allocatable: room, Conditions: []corev1.NodeCondition{
				{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()}}}
			_, err = nodes.UpdateStatus(t.Context(), n, metav1.UpdateOptions{})
			return fmt.Errorf("not yet: %w", err)
		}
		if len(n.Spec.Taints) > 0 {
			return fmt.Errorf("it has taints: %v", n.Spec.Taints)
		}
		return nil
	})
}

func (c *Cluster) deploy(t *testing.T, api kubernetes.Interface, name string) {
	t.Helper()
	replicas, labels := int32(crowd), map[string]string{"app": name}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "c", Image: harness.BoxImage}},
			// No kubelet renews the node. After a while it is not ready any more, which is not what this is about.
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		}},
	}}
	harness.Eventually(t, soon, "the Deployment is made", func() error {
		_, err := api.AppsV1().Deployments("default").Create(t.Context(), d, metav1.CreateOptions{})
		return unlessThere(err)
	})
}

// pods are how many there are, and how many of them have a node.
func pods(t *testing.T, api kubernetes.Interface) (all, bound int, err error) {
	list, err := api.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		return 0, 0, err
	}
	for i := range list.Items {
		if list.Items[i].Spec.NodeName != "" {
			bound++
		}
	}
	return len(list.Items), bound, nil
}
