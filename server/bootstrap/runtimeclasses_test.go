// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// withRuntimes returns a Node that has found these runtimes.
func withRuntimes(name string, runtimes ...string) *corev1.Node {
	n := node(name, name)
	n.Labels = map[string]string{}
	for _, r := range runtimes {
		n.Labels["runtime.coracle.dev/"+r] = "true"
	}
	return n
}

// TestRuntimeClassesFollowNodes: each runtime that a node has found gets a class; an operator's own class stays as it
// is, and a name that a node makes up gets none.
func TestRuntimeClassesFollowNodes(t *testing.T) {
	own := &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "nvidia"}, Handler: "mine"}
	c := fake.NewClientset(own, withRuntimes("a", "nvidia", "made-up"))
	f := informers.NewSharedInformerFactory(c, 0)
	r := NewRuntimeClasses(c, f, quiet)
	ctx, cancel := context.WithCancel(t.Context())
	f.Start(ctx.Done())
	watched := func() bool {
		return slices.ContainsFunc(c.Actions(), func(a clienttesting.Action) bool { return a.Matches("watch", "nodes") })
	}
	eventually(t, "nodes to be watched", watched) // a fake sends a watch nothing of what happened between list and watch
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()

	classes := c.NodeV1().RuntimeClasses()
	names := func() (names []string) {
		for _, class := range testenv.Must(classes.List(t.Context(), metav1.ListOptions{}))(t).Items {
			names = append(names, class.Name)
		}
		return names
	}
	testenv.Must(c.CoreV1().Nodes().Create(ctx, withRuntimes("b", "nvidia"), metav1.CreateOptions{}))(t)
	testenv.Must(c.CoreV1().Nodes().Update(ctx, withRuntimes("a", "nvidia", "crun"), metav1.UpdateOptions{}))(t)
	eventually(t, "crun's class", func() bool { return slices.Equal(names(), []string{"crun", "nvidia"}) })
	class := testenv.Must(classes.Get(ctx, "crun", metav1.GetOptions{}))(t)
	if class.Handler != "crun" || len(class.Scheduling.NodeSelector) != 1 || class.Scheduling.NodeSelector["runtime.coracle.dev/crun"] != "true" {
		t.Errorf("crun's class is %+v", class)
	}
	if have := testenv.Must(classes.Get(ctx, "nvidia", metav1.GetOptions{}))(t); have.Handler != "mine" || have.Scheduling != nil {
		t.Errorf("the operator's class is %+v", have)
	}
	testenv.NoError(t, c.CoreV1().Nodes().Delete(ctx, "a", metav1.DeleteOptions{}))
	testenv.Must(c.CoreV1().Nodes().Update(ctx, withRuntimes("b", "wws"), metav1.UpdateOptions{}))(t)
	eventually(t, "wws' class, and crun's is still there", func() bool { return slices.Equal(names(), []string{"crun", "nvidia", "wws"}) })
	cancel()
	testenv.Check(t, <-done)
	f.Shutdown()
}

// TestUnchangedNodesAskForNoClasses: a node's updates that do not change its runtimes send no requests.
func TestUnchangedNodesAskForNoClasses(t *testing.T) {
	n := withRuntimes("a", "crun")
	before := runtimesOf(n)
	n.Annotations = map[string]string{"x": "y"}
	n.Labels["zone"] = "b"
	testenv.Equal(t, runtimesOf(n), before, "runtimes:")
	n.Labels["runtime.coracle.dev/crun"] = "false"
	testenv.Equal(t, runtimesOf(n), "", "runtimes without the value true:")
}
