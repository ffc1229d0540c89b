// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/controllers"
	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/scheduler"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// lead runs the scheduler, the controllers and more until the returned function is called, which returns term.Run's
// error.
func (c *cluster) lead(ctx context.Context, number uint64, more ...term.Part) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1) // the only value, so that the term need not be waited for
	go func() {
		parts := append(more,
			func(ctx context.Context, t *term.Term) error {
				var plugins func() ([]volume.VolumePlugin, error)
				if c.plugins != nil {
					plugins = func() ([]volume.VolumePlugin, error) { return c.plugins(ctx, t) }
				}
				return controllers.Run(ctx, controllers.Options{
					VolumePlugins: plugins,
					Term:          t, ClusterCIDR: "10.42.0.0/16", ServiceCIDR: "10.43.0.0/16", Small: true,
					ClusterSigningCertFile: c.path("ca.crt"), ClusterSigningKeyFile: c.path("ca.key"),
					RootCAFile: c.path("ca.crt"), ServiceAccountPrivateKeyFile: c.path("server.key"),
					FlexVolumePluginDir: c.path("flexvolume"),
				})
			},
			func(ctx context.Context, t *term.Term) error {
				return scheduler.Run(ctx, scheduler.Options{Term: t, Refusals: c.refusals})
			})
		done <- term.Run(ctx, term.Options{Config: c.config, Number: number, EndTimeout: stopWithin}, parts...)
	}()
	return func() error { cancel(); return <-done }
}

// term leads for one test.
func (c *cluster) term(t *testing.T) {
	t.Helper()
	stop := c.lead(t.Context(), 1)
	t.Cleanup(func() { testenv.Check(t, stop(), "the term ended with") })
}

// eventually polls until check returns nil.
func eventually(t *testing.T, what string, check func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 130*time.Second) // longer, so that the last look says what is missing
	defer cancel()
	testenv.Eventually(t, 2*time.Minute, what, func() error { return check(ctx) })
}

func (c *cluster) namespace(t *testing.T, name string) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	testenv.Must(c.client.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}))(t)
	eventually(t, "default service account", func(ctx context.Context) error {
		_, err := c.client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	return name
}

// node makes a Node that no kubelet stands behind and that stays ready for as long as a test takes.
func (c *cluster) node(t *testing.T, name string) {
	t.Helper()
	room := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourcePods: resource.MustParse("110"),
	}
	testenv.Must(
		c.client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))(t)
	testenv.NoError(t, retry.RetryOnConflict(retry.DefaultRetry, func() error {
		n, err := c.client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		n.Status = corev1.NodeStatus{Capacity: room, Allocatable: room, Conditions: []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Test",
			LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
		}}}
		_, err = c.client.CoreV1().Nodes().UpdateStatus(t.Context(), n, metav1.UpdateOptions{})
		return err
	}))
	t.Cleanup(func() {
		_ = c.client.CoreV1().Nodes().Delete(context.Background(), name, metav1.DeleteOptions{})
	})
}

func podTemplate(app string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": app}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: ptr.To[int64](0),
			Containers:                    []corev1.Container{{Name: "main", Image: "example.invalid/none"}},
		},
	}
}

func selector(app string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
}

// bound returns nil when want pods of an app are bound to a node.
func (c *cluster) bound(ctx context.Context, ns, app string, want int) error {
	pods, err := c.client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil {
		return err
	}
	n := 0
	for _, p := range pods.Items {
		if p.Spec.NodeName != "" {
			n++
		}
	}
	if n != want {
		return fmt.Errorf("%d of %d pods are bound, want %d", n, len(pods.Items), want)
	}
	return nil
}

func TestDeploymentBecomesBoundPods(t *testing.T) {
	c := shared
	c.term(t)
	ns := c.namespace(t, "whole")
	c.node(t, "whole-node")
	testenv.Must(c.client.AppsV1().Deployments(ns).Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       appsv1.DeploymentSpec{Replicas: ptr.To[int32](3), Selector: selector("web"), Template: podTemplate("web")},
	}, metav1.CreateOptions{}))(t)
	eventually(t, "three bound pods", func(ctx context.Context) error { return c.bound(ctx, ns, "web", 3) })
	eventually(t, "a pod range for the node", func(ctx context.Context) error {
		n, err := c.client.CoreV1().Nodes().Get(ctx, "whole-node", metav1.GetOptions{})
		if err == nil && n.Spec.PodCIDR == "" {
			err = fmt.Errorf("none yet")
		}
		return err
	})
}
