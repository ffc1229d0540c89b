// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	corelisters "k8s.io/client-go/listers/core/v1"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/coracle-k8s/coracle/test/services/lb"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// late is a controller whose caches hear of nothing that the test does not tell them.
func late(t *testing.T, client *fake.Clientset, change ...func(*Options)) (c *Controller, services cache.Indexer) {
	t.Helper()
	o := Options{Client: client, Informers: informers.NewSharedInformerFactory(client, 0), Recorder: record.NewFakeRecorder(1000)}
	for _, f := range change {
		f(&o)
	}
	c = testenv.Must(New(o))(t)
	services = cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	c.services = corelisters.NewServiceLister(services)
	nodes := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	c.nodes = corelisters.NewNodeLister(nodes)
	all := testenv.Must(client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}))(t)
	for i := range all.Items {
		testenv.NoError(t, nodes.Add(&all.Items[i]))
	}
	return c, services
}

// TestOwnWritesAreSeen: what a round has given is not given to an older Service by the next one, whose cache has not
// heard of it yet.
func TestOwnWritesAreSeen(t *testing.T) {
	client := fake.NewClientset(lb.Node("a", "10.0.0.1"))
	revision := 10
	client.PrependReactor("*", "services", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if with, ok := a.(interface{ GetObject() runtime.Object }); ok {
			revision++
			with.GetObject().(*corev1.Service).ResourceVersion = strconv.Itoa(revision)
		}
		return false, nil, nil
	})
	c, known := late(t, client)
	come := func(svc *corev1.Service) {
		t.Helper()
		made, err := client.CoreV1().Services("default").Create(t.Context(), svc, metav1.CreateOptions{})
		if err == nil {
			err = known.Add(made.DeepCopy())
		}
		testenv.NoError(t, err)
	}
	has := func(when, web, old string) {
		t.Helper()
		for name, want := range map[string]string{"web": web, "old": old} {
			s := testenv.Must(client.CoreV1().Services("default").Get(t.Context(), name, metav1.GetOptions{}))(t)
			testenv.Equal(t, ingressText(s.Status.LoadBalancer), want, "%s: %s has", when, name)
		}
	}
	round := func() {
		t.Helper()
		testenv.Require(t, c.checkServices(t.Context()), "something could not be written")
	}
	come(lb.Service("web", 1))
	round()
	come(lb.Service("old", 0))
	round()
	has("the cache has not heard of it", "10.0.0.1", "none")
	round()
	has("nor in the next round", "10.0.0.1", "none")
	web := testenv.Must(client.CoreV1().Services("default").Get(t.Context(), "web", metav1.GetOptions{}))(t)
	changed := web.DeepCopy() // a user has changed it since
	changed.Spec.Ports[0].Port, changed.ResourceVersion = 80, "99"
	testenv.NoError(t, known.Update(changed))
	if s, _, _, err := c.readState(); err != nil || c.written[serviceKey(web)] != nil {
		t.Errorf("what the cache has is newer, and %v of %v is kept (%v)", c.written[serviceKey(web)], s.Services, err)
	}
}

// TestUnansweredWritesAreSeen: a status that was written, though its writer heard of an error, is not overlooked by the
// next round, whose cache has not heard of it.
func TestUnansweredWritesAreSeen(t *testing.T) {
	client := fake.NewClientset(lb.Node("a", "10.0.0.1"))
	revision, fails := 10, false
	silent := apierrors.NewTimeoutError("the store has no quorum", 1)
	client.PrependReactor("*", "services", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if with, ok := a.(interface{ GetObject() runtime.Object }); ok {
			revision++
			with.GetObject().(*corev1.Service).ResourceVersion = strconv.Itoa(revision)
		}
		update, ok := a.(clienttesting.UpdateAction)
		if !ok || !fails {
			return fails && a.GetVerb() == "get", nil, silent
		}
		if err := client.Tracker().Update(a.GetResource(), update.GetObject(), a.GetNamespace()); err != nil {
			return true, nil, err
		}
		return true, nil, silent
	})
	c, known := late(t, client)
	for i, name := range []string{"web", "old"} {
		made, err := client.CoreV1().Services("default").Create(t.Context(), lb.Service(name, 1-i), metav1.CreateOptions{})
		if err == nil {
			err = known.Add(made.DeepCopy())
		}
		testenv.NoError(t, err)
		fails = name == "web"
		for range 2 {
			testenv.Require(t, !fails || !c.checkServices(t.Context()), "a round without answers counts as done")
		}
		fails = false
	}
	for range 2 {
		testenv.Require(t, c.checkServices(t.Context()), "something could not be written")
		for name, want := range map[string]string{"web": "10.0.0.1", "old": "none"} {
			s := testenv.Must(client.CoreV1().Services("default").Get(t.Context(), name, metav1.GetOptions{}))(t)
			testenv.Equal(t, ingressText(s.Status.LoadBalancer), want, "%s has", name)
		}
	}
	testenv.True(t, len(c.uncertain) == 0, "%v are asked for again and again", c.uncertain)
}

func TestOwnWritesCountUntilTheCacheHasThem(t *testing.T) {
	service := func(name, uid, revision string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(uid), ResourceVersion: revision}}
	}
	w := statusWrites{}
	for _, svc := range []*corev1.Service{service("newer", "1", "100"), service("as old", "2", "7"), service("older", "3", "99"), service("anew", "4", "9"), service("gone", "5", "9"), service("no number", "6", "x")} {
		w.record(svc)
	}
	cached := []*corev1.Service{service("newer", "1", "99"), service("as old", "2", "7"), service("older", "3", "100"), service("anew", "40", "8"), service("no number", "6", "5"), service("never written", "7", "1")}
	got := w.overlay(cached)
	for i, want := range []string{"100", "7", "100", "8", "5", "1"} {
		testenv.Equal(t, got[i].ResourceVersion, want, "%s is taken at revision", got[i].Name)
	}
	testenv.False(t, len(w) != 1 || w[serviceKey(cached[0])] == nil, "%d are kept", len(w))
	testenv.Equal(t, cached[0].ResourceVersion, "99", "the cache's own list was changed:")
}
