// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	restfake "k8s.io/client-go/rest/fake"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/controller-manager/pkg/clientbuilder"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/pkg/controller/nodelifecycle"
	"k8s.io/kubernetes/pkg/controller/nodelifecycle/scheduler"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// countedLimiter refuses, and counts how often it is asked.
type countedLimiter struct {
	flowcontrol.RateLimiter
	asked *int
}

func (l countedLimiter) TryAccept() bool {
	*l.asked++
	return false
}

// TestNodesAreTaintedEveryTaintPeriod: upstream's controller looks for nodes to taint every taintPeriod, and ends with
// its context.
func TestNodesAreTaintedEveryTaintPeriod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		client := fake.NewClientset()
		all := informers.NewSharedInformerFactory(client, 0)
		c, err := nodelifecycle.NewNodeLifecycleController(ctx, all.Coordination().V1().Leases(), all.Core().V1().Pods(), all.Core().V1().Nodes(),
			all.Apps().V1().DaemonSets(), client, 5*time.Second, time.Minute, time.Minute, 0.1, 0.01, 50, 0.55)
		testenv.NoError(t, err)
		testenv.NoError(t, slowTaints(ctx, c))
		zones := testenv.Must(kubecompat.Field[map[string]*scheduler.RateLimitedTimedQueue](c, []string{"zoneNoExecuteTainter"}))(t)
		asked := 0
		(*zones)["counted"] = scheduler.NewRateLimitedTimedQueue(countedLimiter{asked: &asked})
		(*zones)["counted"].Add("node", "")
		all.StartWithContext(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			c.Run(ctx)
		}()
		time.Sleep(time.Minute) // of the bubble's clock: that long is counted
		if want := int(time.Minute / taintPeriod); asked < want/2 || asked > want+1 {
			t.Errorf("looked %d times in a minute, want %d", asked, want)
		}
		cancel()
		<-ended
		all.Shutdown()
	})
}

// oneClient is the client of all controllers. Events are not taken; the fake client would panic.
type oneClient struct {
	clientbuilder.ControllerClientBuilder
	clientset.Interface
}

func (c oneClient) Client(string) (clientset.Interface, error) { return c, nil }

func (c oneClient) CoreV1() corev1client.CoreV1Interface { return withoutEvents{c.Interface.CoreV1()} }

type withoutEvents struct{ corev1client.CoreV1Interface }

func (withoutEvents) RESTClient() rest.Interface {
	return &restfake.RESTClient{
		NegotiatedSerializer: scheme.Codecs, GroupVersion: corev1.SchemeGroupVersion,
		Client: restfake.CreateHTTPClient(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: http.StatusForbidden, Body: http.NoBody}, nil
		}),
	}
}

// A new leader's controller sees pods for the first time while a kubelet that has just started says that it is not
// ready. The pods are as ready as before.
func TestPodsStayReadyWhileTheirNodeSaysThatItIsNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "one"}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: corev1.ConditionFalse, LastHeartbeatTime: metav1.Now()},
		}}}
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "some", Namespace: "default"}, Spec: corev1.PodSpec{NodeName: "one"},
			Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
		}
		client := fake.NewClientset(node)
		all := informers.NewSharedInformerFactory(client, 0)
		cc := app.ControllerContext{ClientBuilder: oneClient{Interface: client}, InformerFactory: all}
		cc.ComponentConfig.NodeLifecycleController.NodeMonitorPeriod.Duration = 5 * time.Second
		cc.ComponentConfig.NodeLifecycleController.NodeMonitorGracePeriod.Duration = time.Hour
		c, err := newNodeLifecycleController(ctx, cc)
		testenv.NoError(t, err)
		all.StartWithContext(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			c.Run(ctx)
		}()
		time.Sleep(time.Minute) // of the bubble's clock: the controller knows the node by then
		testenv.Must(client.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{}))(t)
		time.Sleep(time.Minute) // of the bubble's clock: no event says that the controller leaves the pod alone
		got := testenv.Must(client.CoreV1().Pods("default").Get(ctx, "some", metav1.GetOptions{}))(t)
		testenv.Equal(t, got.Status.Conditions[0].Status, corev1.ConditionTrue, "the pod is ready:")
		cancel()
		<-ended
		all.Shutdown()
	})
}
