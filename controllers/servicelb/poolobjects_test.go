// SPDX-License-Identifier: Apache-2.0

package servicelb_test

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/coracle-k8s/coracle/controllers/servicelb"
	"github.com/coracle-k8s/coracle/controllers/servicelb/addresspool"
	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/test/services/lb"
	"github.com/coracle-k8s/coracle/test/testenv"
)

var definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

func fakeObjects() *dynamicfake.FakeDynamicClient {
	objects := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		addresspool.Resource(): "AddressPoolList", definitions: "CustomResourceDefinitionList",
	})
	refuseStalePools(objects)
	return objects
}

// refuseStalePools has a fake API refuse an update of an AddressPool that another one has changed meanwhile, and keep
// spec and status apart, as the true API does. The fake itself stores whatever comes last, whole.
func refuseStalePools(objects *dynamicfake.FakeDynamicClient) {
	version := 0 // guarded by the fake's lock
	stored := func(u *unstructured.Unstructured) *unstructured.Unstructured {
		version++
		u.SetResourceVersion(strconv.Itoa(version))
		return u
	}
	objects.PrependReactor("create", "addresspools", func(a clienttesting.Action) (bool, runtime.Object, error) {
		u := stored(a.(clienttesting.CreateAction).GetObject().(*unstructured.Unstructured))
		return true, u, objects.Tracker().Create(a.GetResource(), u, "")
	})
	objects.PrependReactor("update", "addresspools", func(a clienttesting.Action) (bool, runtime.Object, error) {
		u := a.(clienttesting.UpdateAction).GetObject().(*unstructured.Unstructured)
		o, err := objects.Tracker().Get(a.GetResource(), "", u.GetName())
		if err != nil {
			return true, nil, err
		}
		have := o.DeepCopyObject().(*unstructured.Unstructured)
		if v := u.GetResourceVersion(); v != "" && v != have.GetResourceVersion() {
			return true, nil, apierrors.NewConflict(a.GetResource().GroupResource(), u.GetName(), errors.New("it was changed meanwhile"))
		}
		if a.GetSubresource() == "status" {
			have.Object["status"] = u.Object["status"]
			u = have
		} else if u.Object["status"] = have.Object["status"]; have.Object["status"] == nil {
			delete(u.Object, "status")
		}
		return true, stored(u), objects.Tracker().Update(a.GetResource(), u, "")
	})
}

func poolObject(name string, addresses ...any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "coracle.dev/v1alpha1", "kind": "AddressPool", "metadata": map[string]any{"name": name}, "spec": map[string]any{"addresses": addresses},
	}}
}

func TestControllerFollowsAddressPools(t *testing.T) {
	defer testenv.NoGoroutineLeft(t)
	ctx, node := t.Context(), lb.Node("a", "10.0.0.1")
	node.Annotations = map[string]string{loadbalancer.NetworksAnnotation: "10.0.0.0/24"}
	client, objects := fake.NewClientset(lb.Service("web", 0), node), fakeObjects()
	with := func(o *servicelb.Options) { o.Dynamic, o.Alive = objects, func(string) bool { return true } }
	events, stop := servicelb.RunController(t, client, false, with)
	servicelb.AwaitAddresses(t, client, "web", "10.0.0.1")
	servicelb.AwaitWatch(t, objects, "addresspools")

	pools := objects.Resource(addresspool.Resource())
	testenv.Must(pools.Create(ctx, poolObject("office", "10.0.0.200"), metav1.CreateOptions{}))(t)
	servicelb.AwaitAddresses(t, client, "web", "10.0.0.200")
	testenv.Eventually(t, 2*time.Minute, "the pool says that it is used", func() error {
		u, err := pools.Get(ctx, "office", metav1.GetOptions{})
		if err != nil {
			return err
		}
		p, err := addresspool.From(u)
		if err == nil && (p.Status.Used != 1 || p.Status.Total != 1 || len(p.Status.Conditions) != 1 || p.Status.Conditions[0].Status != metav1.ConditionTrue) {
			err = fmt.Errorf("%+v", p.Status)
		}
		return err
	})
	testenv.Must(pools.Update(ctx, poolObject("office", "10.0.0.205"), metav1.UpdateOptions{}))(t)
	servicelb.AwaitAddresses(t, client, "web", "10.0.0.205")
	for said := false; !said; {
		select {
		case e := <-events:
			said = strings.HasPrefix(e, corev1.EventTypeWarning+" AddressTakenAway") && strings.Contains(e, "10.0.0.200")
		case <-time.After(2 * time.Minute):
			t.Fatal("no event says that an address was taken away")
		}
	}
	stop()

	// Disabled, the definition stays for the sake of the pool, and then goes.
	_, stop = servicelb.RunController(t, client, true, with)
	servicelb.AwaitAddresses(t, client, "web", "none")
	stop()
	definition := testenv.Must(addresspool.Kind().Read())(t)
	testenv.Check(t, testenv.Err(objects.Resource(definitions).Get(ctx, definition.GetName(), metav1.GetOptions{})), "the definition went, and the pool with it")
	testenv.NoError(t, pools.Delete(ctx, "office", metav1.DeleteOptions{}))
	_, stop = servicelb.RunController(t, client, true, with)
	testenv.Eventually(t, 2*time.Minute, "the definition goes", func() error {
		_, err := objects.Resource(definitions).Get(ctx, definition.GetName(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is there: %w", err)
	})
	stop()
}

// TestUnknownPoolsTakeNothingAway: as long as it cannot be said which AddressPools there are, no Service loses an
// address.
func TestUnknownPoolsTakeNothingAway(t *testing.T) {
	defer testenv.NoGoroutineLeft(t)
	ctx := t.Context()
	client, objects := fake.NewClientset(lb.Service("web", 0, lb.Having("10.0.0.200")), lb.Node("a", "10.0.0.1")), fakeObjects()
	testenv.NoError(t, addresspool.Kind().Define(ctx, objects))
	testenv.Must(
		objects.Resource(addresspool.Resource()).Create(ctx, poolObject("office", "10.0.0.200-10.0.0.201"), metav1.CreateOptions{}))(t)
	asked := make(chan struct{}, 100)
	broken := true
	objects.PrependReactor("list", "addresspools", func(clienttesting.Action) (bool, runtime.Object, error) {
		select {
		case asked <- struct{}{}:
		default:
		}
		if broken { // guarded by the fake's lock
			broken = len(asked) < 3
			return true, nil, apierrors.NewInternalError(errors.New("a test's"))
		}
		return false, nil, nil
	})
	_, stop := servicelb.RunController(t, client, false, func(o *servicelb.Options) { o.Dynamic, o.Alive = objects, func(string) bool { return true } })
	awaitHolder(t, client, "10.0.0.200", "") // written after all of it, for no node: this one says nothing of its networks
	for _, a := range client.Actions() {
		if a.Matches("update", "services/status") || a.Matches("update", "services") {
			u, _ := a.(clienttesting.UpdateAction)
			if s, ok := u.GetObject().(*corev1.Service); ok && servicelb.IngressText(s.Status.LoadBalancer) != "10.0.0.200" {
				t.Errorf("the Service had %s meanwhile", servicelb.IngressText(s.Status.LoadBalancer))
			}
		}
	}
	stop()
}
