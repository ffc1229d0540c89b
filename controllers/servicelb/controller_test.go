// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// run runs a controller until the function that it returns is called.
func run(t *testing.T, client *fake.Clientset, disabled bool, change ...func(*Options)) (events chan string, stop func()) {
	t.Helper()
	factory := informers.NewSharedInformerFactory(client, 0)
	recorder := record.NewFakeRecorder(1000)
	o := Options{Client: client, Informers: factory, Recorder: recorder, Disabled: disabled}
	for _, f := range change {
		f(&o)
	}
	c := testenv.Must(New(o))(t)
	ctx, cancel := context.WithCancel(context.Background())
	factory.Start(ctx.Done())
	for _, resource := range []string{"services", "nodes", "pods"} {
		awaitWatch(t, client, resource)
	}
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	return recorder.Events, func() {
		cancel()
		testenv.Check(t, <-done)
		factory.Shutdown()
	}
}

func awaitAddresses(t *testing.T, client *fake.Clientset, service, want string) {
	t.Helper()
	testenv.Eventually(t, 2*time.Minute, service+" has "+want, func() error {
		s, err := client.CoreV1().Services("default").Get(t.Context(), service, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if got := ingressText(s.Status.LoadBalancer); got != want {
			return fmt.Errorf("it has %s", got)
		}
		return nil
	})
}

func TestControllerPublishesAddressesAndConflicts(t *testing.T) {
	defer testenv.NoGoroutineLeft(t)
	ctx := t.Context()
	client := fake.NewClientset(testService("web", 0), testNode("a", "10.0.0.1"), testNode("b", "10.0.0.2"))
	events, stop := run(t, client, false)
	awaitAddresses(t, client, "web", "10.0.0.1 10.0.0.2")

	testenv.Must(client.CoreV1().Services("default").Create(ctx, testService("late", 1), metav1.CreateOptions{}))(t)
	for warned := false; !warned; {
		select {
		case e := <-events:
			warned = strings.HasPrefix(e, "Warning PortInUse") && strings.Contains(e, "default/web has it")
		case <-time.After(2 * time.Minute):
			t.Fatal("no event says that the port is in use")
		}
	}
	awaitAddresses(t, client, "late", "none")
	testenv.Must(client.CoreV1().Nodes().UpdateStatus(ctx, ready(testNode("a", "10.0.0.1"), false), metav1.UpdateOptions{}))(t)
	awaitAddresses(t, client, "web", "10.0.0.2")
	testenv.Must(client.CoreV1().Pods("default").Create(ctx, hostPortPod("ingress", "b", "ingress", 443), metav1.CreateOptions{}))(t)
	awaitAddresses(t, client, "web", "none")
	testenv.NoError(t, client.CoreV1().Pods("default").Delete(ctx, "ingress", metav1.DeleteOptions{}))
	awaitAddresses(t, client, "web", "10.0.0.2")
	testenv.NoError(t, client.CoreV1().Services("default").Delete(ctx, "web", metav1.DeleteOptions{}))
	awaitAddresses(t, client, "late", "10.0.0.2")
	stop()

	_, stop = run(t, client, true)
	awaitAddresses(t, client, "late", "none")
	testenv.Equal(t, len(testenv.Must(client.CoreV1().Services("default").Get(ctx, "late", metav1.GetOptions{}))(t).Status.Conditions), 0, "switched off:")
	stop()
}

func TestHeartbeatsWakeNoController(t *testing.T) {
	old, now := testNode("a", "10.0.0.1"), testNode("a", "10.0.0.1")
	now.Status.Conditions[0].LastHeartbeatTime = metav1.NewTime(epoch)
	testenv.False(t, nodeMatters(old, now), "a heartbeat matters")
	if !nodeMatters(old, ready(now.DeepCopy(), false)) || !nodeMatters(old, with(now.DeepCopy(), NodeLabel, "true")) || !nodeMatters(old, testNode("a", "10.0.0.3")) {
		t.Error("a change does not matter")
	}
	pod := hostPortPod("p", "a", "p", 80)
	if podMatters(pod, pod) || !podMatters(nil, pod) || podMatters(nil, &corev1.Pod{}) {
		t.Error("pods")
	}
	ended := pod.DeepCopy()
	ended.Status.Phase = corev1.PodSucceeded
	testenv.True(t, podMatters(pod, ended), "a pod that has ended does not matter")
}

// awaitHolder waits until the cluster says that a node answers for an address, and "" that none does.
func awaitHolder(t *testing.T, client *fake.Clientset, address, want string) {
	t.Helper()
	testenv.Eventually(t, 2*time.Minute, "the holder is "+want, func() error {
		m, err := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(t.Context(), loadbalancer.ConfigMap, metav1.GetOptions{})
		if err != nil {
			return err
		}
		record, err := loadbalancer.Read(m.Data)
		if got := record[netip.MustParseAddr(address)].Node; err == nil && got != want {
			err = fmt.Errorf("it is %q", got)
		}
		return err
	})
}

// recorded is what the record says of an address.
func recorded(t *testing.T, client *fake.Clientset, address string) loadbalancer.Holder {
	t.Helper()
	m := testenv.Must(client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(t.Context(), loadbalancer.ConfigMap, metav1.GetOptions{}))(t)
	record := testenv.Must(loadbalancer.Read(m.Data))(t)
	return record[netip.MustParseAddr(address)]
}

func TestAddressesMoveFromUnresponsiveNodes(t *testing.T) {
	defer testenv.NoGoroutineLeft(t)
	near := func(n *corev1.Node) *corev1.Node {
		n.Annotations = map[string]string{loadbalancer.NetworksAnnotation: "10.0.0.0/24"}
		return n
	}
	client := fake.NewClientset(testService("web", 0), near(testNode("a", "10.0.0.1")), near(testNode("b", "10.0.0.2")))
	var silent atomic.Pointer[string] // a node
	none := ""
	silent.Store(&none)
	pool := func(o *Options) {
		o.Pool, o.Alive = ranges("10.0.0.200-10.0.0.201"), func(n string) bool { return n != *silent.Load() }
	}
	_, stop := run(t, client, false, pool)
	awaitAddresses(t, client, "web", "10.0.0.200")
	for _, gone := range []string{"a", "b", "a"} {
		silent.Store(&gone)
		awaitHolder(t, client, "10.0.0.200", map[string]string{"a": "b", "b": "a"}[gone])
	}
	// Its holder says that it has proven it, and the record has that.
	b := testenv.Must(client.CoreV1().Nodes().Get(t.Context(), "b", metav1.GetOptions{}))(t)
	before := recorded(t, client, "10.0.0.200")
	b.Annotations[loadbalancer.ProvenAnnotation] = fmt.Sprintf("10.0.0.200=%d", before.Term)
	testenv.Must(client.CoreV1().Nodes().Update(t.Context(), b, metav1.UpdateOptions{}))(t)
	testenv.Eventually(t, 2*time.Minute, "the record says that the address was proven", func() error {
		if h := recorded(t, client, "10.0.0.200"); !before.New || h.New || !h.Same(before) {
			return fmt.Errorf("it was %v and is %v", before, h)
		}
		return nil
	})
	// A user deletes the record: no node would answer any more.
	testenv.NoError(t, client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Delete(t.Context(), loadbalancer.ConfigMap, metav1.DeleteOptions{}))
	awaitHolder(t, client, "10.0.0.200", "b")
	stop()

	_, stop = run(t, client, false) // without a pool
	awaitAddresses(t, client, "web", "10.0.0.1 10.0.0.2")
	awaitHolder(t, client, "10.0.0.200", "")
	stop()
}
