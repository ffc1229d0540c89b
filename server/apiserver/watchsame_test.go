// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metainternal "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	apigeneric "k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	podtest "k8s.io/kubernetes/pkg/api/pod/testing"
	"k8s.io/kubernetes/pkg/apis/core"
	kubeletclient "k8s.io/kubernetes/pkg/kubelet/client"
	configmapstore "k8s.io/kubernetes/pkg/registry/core/configmap/storage"
	nodestore "k8s.io/kubernetes/pkg/registry/core/node/storage"
	podstore "k8s.io/kubernetes/pkg/registry/core/pod/storage"
	secretstore "k8s.io/kubernetes/pkg/registry/core/secret/storage"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// plainStorage is storage of built-in resources in the fixture's store, as the server has it without caches.
type plainStorage struct{ config *storagebackend.Config }

func newPlainStorage() plainStorage {
	c := storagebackend.NewDefaultConfig("/registry", legacyscheme.Codecs.LegacyCodec(schema.GroupVersion{Version: "v1"}))
	c.Transport.ServerList = []string{storeServer}
	return plainStorage{c}
}

// GetRESTOptions implements apigeneric.RESTOptionsGetter.
func (p plainStorage) GetRESTOptions(resource schema.GroupResource, _ runtime.Object) (apigeneric.RESTOptions, error) {
	return apigeneric.RESTOptions{StorageConfig: p.config.ForResource(resource), Decorator: apigeneric.UndecoratedStorage, DeleteCollectionWorkers: 1, ResourcePrefix: "/" + resource.Resource}, nil
}

// cachedStorage is the same with upstream's cache.
type cachedStorage struct{ plainStorage }

// GetRESTOptions implements apigeneric.RESTOptionsGetter.
func (c cachedStorage) GetRESTOptions(resource schema.GroupResource, example runtime.Object) (apigeneric.RESTOptions, error) {
	o, err := c.plainStorage.GetRESTOptions(resource, example)
	o.Decorator = genericregistry.StorageWithCacher()
	return o, err
}

// both is a resource twice: as the store serves it alone, and with a cache.
type both struct {
	store, cached *genericregistry.Store
	make          func(namespace, name string) runtime.Object
	clusterWide   bool // it is in no namespace
}

// Pods' nodes come from r.
func newBoth(t *testing.T, r *rand.Rand) map[string]both {
	t.Helper()
	plain, caching := newPlainStorage(), cachedStorage{newPlainStorage()}
	pods := func(g apigeneric.RESTOptionsGetter) *genericregistry.Store {
		s, err := podstore.NewStorage(g, nil, nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Pod.Store.DestroyFunc)
		return s.Pod.Store
	}
	secrets := func(g apigeneric.RESTOptionsGetter) *genericregistry.Store {
		s, err := secretstore.NewREST(g)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Store.DestroyFunc)
		return s.Store
	}
	nodes := func(g apigeneric.RESTOptionsGetter) *genericregistry.Store {
		s, err := nodestore.NewStorage(g, kubeletclient.KubeletClientConfig{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Node.Store.DestroyFunc)
		return s.Node.Store
	}
	return map[string]both{
		"configmaps": {store: newConfigMaps(t, plain), cached: newConfigMaps(t, caching), make: newConfigMap},
		"secrets": {store: secrets(plain), cached: secrets(caching), make: func(ns, name string) runtime.Object {
			return &core.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Type: core.SecretTypeOpaque}
		}},
		"nodes": {store: nodes(plain), cached: nodes(caching), clusterWide: true, make: func(_, name string) runtime.Object {
			return &core.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
		}},
		"pods": {store: pods(plain), cached: pods(caching), make: func(ns, name string) runtime.Object {
			p := podtest.MakePod(name)
			p.Namespace = ns
			if r.IntN(2) == 0 {
				p.Spec.NodeName = "n" + strconv.Itoa(r.IntN(2))
			}
			return p
		}},
	}
}

func newConfigMaps(t testing.TB, g apigeneric.RESTOptionsGetter) *genericregistry.Store {
	t.Helper()
	s, err := configmapstore.NewREST(g)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Store.DestroyFunc)
	return s.Store
}

func newConfigMap(namespace, name string) runtime.Object {
	return &core.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

// in is the context of a request for what is in a namespace.
func (b both) in(ctx context.Context, namespace string) context.Context {
	resource := b.store.DefaultQualifiedResource.Resource
	if b.clusterWide {
		namespace = ""
	}
	return genericapirequest.WithNamespace(genericapirequest.WithRequestInfo(ctx, &genericapirequest.RequestInfo{IsResourceRequest: true, APIVersion: "v1", Resource: resource}), namespace)
}

// heard is what a watch has delivered.
type heard struct {
	mu     sync.Mutex
	events []string          // without bookmarks
	state  map[string]string // name to resource version
	wrong  []string
	ended  int // initial events' ends
	last   uint64
	closed bool
	w      watch.Interface
}

func (h *heard) listen(initial bool) {
	defer func() {
		h.mu.Lock()
		h.closed = true
		h.mu.Unlock()
	}()
	for e := range h.w.ResultChan() {
		h.mu.Lock()
		m, err := meta.Accessor(e.Object)
		if err != nil {
			h.wrong = append(h.wrong, fmt.Sprintf("%s %v", e.Type, e.Object))
			h.mu.Unlock()
			continue
		}
		rv, _ := strconv.ParseUint(m.GetResourceVersion(), 10, 64)
		key := m.GetNamespace() + "/" + m.GetName()
		_, known := h.state[key]
		switch e.Type {
		case watch.Bookmark:
			if m.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true" {
				h.ended++
			}
			h.mu.Unlock()
			continue
		case watch.Added:
			if known {
				h.wrong = append(h.wrong, "added twice: "+key)
			}
			h.state[key] = m.GetResourceVersion()
		case watch.Modified:
			if !known && initial {
				h.wrong = append(h.wrong, "modified and never added: "+key)
			}
			h.state[key] = m.GetResourceVersion()
		case watch.Deleted:
			if !known && initial {
				h.wrong = append(h.wrong, "deleted and never added: "+key)
			}
			delete(h.state, key)
		}
		if rv < h.last && !initial {
			h.wrong = append(h.wrong, fmt.Sprintf("%d after %d", rv, h.last))
		}
		h.last = rv
		h.events = append(h.events, fmt.Sprintf("%s %s %s %v", e.Type, key, m.GetResourceVersion(), m.GetLabels()))
		h.mu.Unlock()
	}
}

// untilEnd returns the events that the watch delivered, and whether it has ended: the cache ends a watch whose client
// is behind, as it may be on a machine with much else to do.
func (h *heard) untilEnd() (events []string, ended bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.events), h.closed
}

func (h *heard) story() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.events, "\n") + fmt.Sprint("\n", h.wrong)
}

func (h *heard) outcome() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for k, v := range h.state {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return fmt.Sprint(out, h.wrong, h.ended)
}

// pair is one watch asked of both.
type pair struct {
	what    string
	initial bool
	of      [2]*heard
}

func (p *pair) differs() error {
	if delivered, ended := p.of[1].untilEnd(); ended {
		if all, _ := p.of[0].untilEnd(); !p.initial && (len(all) < len(delivered) || !slices.Equal(all[:len(delivered)], delivered)) {
			return fmt.Errorf("%s:\nthe store delivers\n%s\nthe cache delivered until it ended\n%s", p.what, all, delivered)
		}
		return nil
	}
	a, b := p.of[0].story, p.of[1].story
	if p.initial { // what a state is made of may differ, not what follows from all
		a, b = p.of[0].outcome, p.of[1].outcome
	}
	if x, y := a(), b(); x != y || strings.Contains(x, "and never") || strings.Contains(x, "twice") {
		return fmt.Errorf("%s:\nthe store delivers\n%s\nthe cache delivers\n%s", p.what, x, y)
	}
	return nil
}

// TestCacheDeliversWhatTheStoreDelivers changes objects at random, and asks store and cache for the same watches at
// random.
func TestCacheDeliversWhatTheStoreDelivers(t *testing.T) {
	newFixture(t)
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	all := newBoth(t, r)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t.Run(name, func(t *testing.T) { all[name].compare(t, r) })
	}
}

func (b both) compare(t *testing.T, r *rand.Rand) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	eventually(t, "the cache", func() error { return b.cached.ReadinessCheck() })
	var versions []string
	var pairs []*pair
	for step := range 400 {
		versions = append(versions, b.change(t, r))
		if step%4 == 0 {
			pairs = append(pairs, b.ask(t, ctx, r, versions))
		}
		if len(pairs) > 0 && r.IntN(20) == 0 { // a client that goes
			p := pairs[r.IntN(len(pairs))]
			p.of[0].w.Stop()
			p.of[1].w.Stop()
			pairs = slices.DeleteFunc(pairs, func(q *pair) bool { return q == p })
		}
	}
	for _, p := range pairs {
		eventually(t, "both deliver the same", p.differs)
	}
	if len(pairs) == 0 {
		t.Error("nothing was compared")
	}
}

// change makes, changes or deletes an object, and returns the resource version.
func (b both) change(t *testing.T, r *rand.Rand) string {
	t.Helper()
	ns, name := "ns"+strconv.Itoa(r.IntN(2)), "o"+strconv.Itoa(r.IntN(5))
	if r.IntN(5) == 0 {
		name += "-x" // of which the other's name is the beginning
	}
	ctx := b.in(t.Context(), ns)
	was, err := b.store.Get(ctx, name, &metav1.GetOptions{})
	var out runtime.Object
	label := map[string]string{"l": strconv.Itoa(r.IntN(2))}
	switch {
	case err != nil:
		o := b.make(ns, name)
		m, _ := meta.Accessor(o)
		m.SetLabels(label)
		out, err = b.store.Create(ctx, o, rest.ValidateAllObjectFunc, &metav1.CreateOptions{})
	case r.IntN(4) == 0:
		zero := int64(0)
		out, _, err = b.store.Delete(ctx, name, rest.ValidateAllObjectFunc, &metav1.DeleteOptions{GracePeriodSeconds: &zero})
	default:
		m, _ := meta.Accessor(was)
		m.SetLabels(label)
		m.SetAnnotations(map[string]string{"n": strconv.Itoa(r.Int())})
		out, _, err = b.store.Update(ctx, name, rest.DefaultUpdatedObjectInfo(was), nil, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := meta.Accessor(out)
	if err != nil {
		now, err := b.store.Storage.Storage.GetCurrentResourceVersion(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return strconv.FormatUint(now, 10)
	}
	return m.GetResourceVersion()
}

// ask asks both for a watch.
func (b both) ask(t *testing.T, ctx context.Context, r *rand.Rand, versions []string) *pair {
	t.Helper()
	o := &metainternal.ListOptions{AllowWatchBookmarks: r.IntN(2) == 0}
	var terms []fields.Selector
	if r.IntN(3) > 0 { // one object, mostly
		name := "o" + strconv.Itoa(r.IntN(7)) // two of which never are
		terms = append(terms, fields.OneTermEqualSelector("metadata.name", name))
	}
	if b.store.DefaultQualifiedResource.Resource == "pods" && r.IntN(4) == 0 {
		terms = append(terms, fields.OneTermEqualSelector("spec.nodeName", "n"+strconv.Itoa(r.IntN(2))))
	}
	ns := ""
	switch n := r.IntN(5); {
	case n == 1 || b.clusterWide:
	case n == 0:
		terms = append(terms, fields.OneTermEqualSelector("metadata.namespace", "ns0"))
	default:
		ns = "ns" + strconv.Itoa(r.IntN(2))
	}
	if len(terms) > 0 {
		o.FieldSelector = fields.AndSelectors(terms...)
	}
	if r.IntN(4) == 0 {
		o.LabelSelector = labels.SelectorFromSet(labels.Set{"l": "1"})
	}
	p := &pair{}
	switch r.IntN(6) {
	case 0:
		p.initial = true
	case 1:
		o.ResourceVersion, p.initial = "0", true
	case 2:
		yes := true
		o.SendInitialEvents, o.ResourceVersionMatch, o.AllowWatchBookmarks, p.initial = &yes, metav1.ResourceVersionMatchNotOlderThan, true, true
		switch r.IntN(3) {
		case 0:
			o.ResourceVersion = "0"
		case 1:
			o.ResourceVersion = versions[r.IntN(len(versions))]
		}
	case 3: // now, or what is yet to come, as after a watch of a server that is ahead
		now, err := strconv.Atoi(versions[len(versions)-1])
		if err != nil {
			t.Fatal(err)
		}
		o.ResourceVersion = strconv.Itoa(now + r.IntN(2)*r.IntN(20))
	default:
		o.ResourceVersion = versions[max(0, len(versions)-1-r.IntN(30))]
	}
	p.what = fmt.Sprintf("namespace %q, fields %v, labels %v, version %q, initial %v, bookmarks %t", ns, o.FieldSelector, o.LabelSelector, o.ResourceVersion, o.SendInitialEvents != nil, o.AllowWatchBookmarks)
	if ns != "" {
		ctx = b.in(ctx, ns)
	}
	for i, s := range []*genericregistry.Store{b.store, b.cached} {
		ctx, cancel := context.WithTimeout(ctx, time.Hour)
		t.Cleanup(cancel)
		w, err := s.Watch(ctx, o)
		if err != nil {
			t.Fatal(p.what, err)
		}
		p.of[i] = &heard{state: map[string]string{}, w: w}
		go p.of[i].listen(p.initial)
	}
	return p
}
