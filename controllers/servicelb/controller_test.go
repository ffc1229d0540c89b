// SPDX-License-Identifier: Apache-2.0

package servicelb_test

import (
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/controllers/servicelb"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/test/services/lb"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestControllerPublishesAddressesAndConflicts(t *testing.T) {
	defer testenv.NoGoroutineLeft(t)
	ctx := t.Context()
	client := fake.NewClientset(lb.Service("web", 0), lb.Node("a", "10.0.0.1"), lb.Node("b", "10.0.0.2"))
	events, stop := servicelb.RunController(t, client, false)
	servicelb.AwaitAddresses(t, client, "web", "10.0.0.1 10.0.0.2")

	testenv.Must(client.CoreV1().Services("default").Create(ctx, lb.Service("late", 1), metav1.CreateOptions{}))(t)
	for warned := false; !warned; {
		select {
		case e := <-events:
			warned = strings.HasPrefix(e, "Warning PortInUse") && strings.Contains(e, "default/web has it")
		case <-time.After(2 * time.Minute):
			t.Fatal("no event says that the port is in use")
		}
	}
	servicelb.AwaitAddresses(t, client, "late", "none")
	testenv.Must(client.CoreV1().Nodes().UpdateStatus(ctx, lb.Ready(lb.Node("a", "10.0.0.1"), false), metav1.UpdateOptions{}))(t)
	servicelb.AwaitAddresses(t, client, "web", "10.0.0.2")
	testenv.Must(client.CoreV1().Pods("default").Create(ctx, lb.HostPortPod("ingress", "b", "ingress", 443), metav1.CreateOptions{}))(t)
	servicelb.AwaitAddresses(t, client, "web", "none")
	testenv.NoError(t, client.CoreV1().Pods("default").Delete(ctx, "ingress", metav1.DeleteOptions{}))
	servicelb.AwaitAddresses(t, client, "web", "10.0.0.2")
	testenv.NoError(t, client.CoreV1().Services("default").Delete(ctx, "web", metav1.DeleteOptions{}))
	servicelb.AwaitAddresses(t, client, "late", "10.0.0.2")
	stop()

	_, stop = servicelb.RunController(t, client, true)
	servicelb.AwaitAddresses(t, client, "late", "none")
	testenv.Equal(t, len(testenv.Must(client.CoreV1().Services("default").Get(ctx, "late", metav1.GetOptions{}))(t).Status.Conditions), 0, "switched off:")
	stop()
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
	client := fake.NewClientset(lb.Service("web", 0), near(lb.Node("a", "10.0.0.1")), near(lb.Node("b", "10.0.0.2")))
	var silent atomic.Pointer[string] // a node
	none := ""
	silent.Store(&none)
	pool := func(o *servicelb.Options) {
		o.Pool, o.Alive = lb.Ranges("10.0.0.200-10.0.0.201"), func(n string) bool { return n != *silent.Load() }
	}
	_, stop := servicelb.RunController(t, client, false, pool)
	servicelb.AwaitAddresses(t, client, "web", "10.0.0.200")
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

	_, stop = servicelb.RunController(t, client, false) // without a pool
	servicelb.AwaitAddresses(t, client, "web", "10.0.0.1 10.0.0.2")
	awaitHolder(t, client, "10.0.0.200", "")
	stop()
}
