// SPDX-License-Identifier: Apache-2.0

// Package watchapi is what a node's network programs need of an API server: lists and watches of a few types, in
// protobuf over HTTP. Its objects come from the test, at a moment that the test knows, so that coracle's proxy and
// upstream's kube-proxy hear of a change in the same way.
//
// It is for tests and benchmarks only. It writes nothing for its clients, and goes by one selector, the field
// metadata.name, with which a program asks for its own node; otherwise it gives everything: a test makes only what the
// others would let through.
package watchapi

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/coracle-k8s/coracle/test/netns"
)

// API has the objects, and every change of them. Make one with New.
type API struct {
	kinds map[string]schema.GroupVersionKind // by path

	mu      sync.Mutex
	version int
	objects map[string]map[string]runtime.Object // by path, then by namespace and name
	log     []event
	changed chan struct{} // closed at the next event
}

type event struct {
	version int
	path    string
	kind    watch.EventType
	object  runtime.Object
}

// New has these objects. They must not be changed afterwards.
func New(objects ...runtime.Object) *API {
	a := &API{kinds: map[string]schema.GroupVersionKind{}, objects: map[string]map[string]runtime.Object{}, changed: make(chan struct{})}
	for path, k := range map[string]schema.GroupVersionKind{
		"/api/v1/nodes":      corev1.SchemeGroupVersion.WithKind("Node"),
		"/api/v1/services":   corev1.SchemeGroupVersion.WithKind("Service"),
		"/api/v1/pods":       corev1.SchemeGroupVersion.WithKind("Pod"),
		"/api/v1/namespaces": corev1.SchemeGroupVersion.WithKind("Namespace"),
		"/apis/discovery.k8s.io/v1/endpointslices":   discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"),
		"/apis/networking.k8s.io/v1/servicecidrs":    networkingv1.SchemeGroupVersion.WithKind("ServiceCIDR"),
		"/apis/networking.k8s.io/v1/networkpolicies": networkingv1.SchemeGroupVersion.WithKind("NetworkPolicy"),
	} {
		a.kinds[path], a.objects[path] = k, map[string]runtime.Object{}
	}
	a.Put(objects...)
	return a
}

// Serve answers inside a namespace, until the test ends, at the URL that it returns.
func (a *API) Serve(t testing.TB, in netns.Doer) string {
	var l net.Listener
	if err := in.Do(func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:0"); return err }); err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: a}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close(); <-done })
	return "http://" + l.Addr().String()
}

func (a *API) kindOf(o runtime.Object) (path, name string, kind schema.GroupVersionKind) {
	kinds, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		panic(err)
	}
	for path, kind := range a.kinds {
		if kind == kinds[0] {
			m, _ := meta.Accessor(o)
			return path, m.GetNamespace() + "/" + m.GetName(), kind
		}
	}
	panic(fmt.Sprint("no place for ", kinds))
}

// Put creates objects or replaces them. They must not be changed afterwards.
func (a *API) Put(objects ...runtime.Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range objects {
		path, name, kind := a.kindOf(o)
		what := watch.Added
		if a.objects[path][name] != nil {
			what = watch.Modified
		}
		a.version++
		o.GetObjectKind().SetGroupVersionKind(kind)
		m, _ := meta.Accessor(o)
		m.SetResourceVersion(strconv.Itoa(a.version))
		a.objects[path][name] = o
		a.broadcast(event{a.version, path, what, o})
	}
}

// Remove deletes objects, of which the type, the namespace and the name count; those that are not there it passes over.
func (a *API) Remove(objects ...runtime.Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range objects {
		path, name, _ := a.kindOf(o)
		old := a.objects[path][name]
		if old == nil {
			continue
		}
		delete(a.objects[path], name)
		a.version++
		old = old.DeepCopyObject()
		m, _ := meta.Accessor(old)
		m.SetResourceVersion(strconv.Itoa(a.version))
		a.broadcast(event{a.version, path, watch.Deleted, old})
	}
}

// broadcast is called with mu held.
func (a *API) broadcast(e event) {
	a.log = append(a.log, e)
	close(a.changed)
	a.changed = make(chan struct{})
}

// named is the one name that a request asks for, or empty.
func named(r *http.Request) string {
	name, ok := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name=")
	if !ok {
		return "" // another selector, such as the one for Services with an address
	}
	return name
}

// list has all objects of a path, or those with a name.
func (a *API) list(path, name string) ([]runtime.Object, int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []runtime.Object
	for _, o := range a.objects[path] {
		if m, _ := meta.Accessor(o); name == "" || m.GetName() == name {
			out = append(out, o)
		}
	}
	return out, a.version
}

// after are the events of a path since a version, of all objects or of those with a name, and what is closed at the
// next event of any.
func (a *API) after(path, name string, version int) ([]event, int, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i, _ := slices.BinarySearchFunc(a.log, version+1, func(e event, v int) int { return e.version - v })
	var out []event
	for _, e := range a.log[i:] {
		if m, _ := meta.Accessor(e.object); e.path == path && (name == "" || m.GetName() == name) {
			out = append(out, e)
		}
	}
	return out, a.version, a.changed
}

const mediaType = "application/vnd.kubernetes.protobuf"

var encoder = protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, ok := a.kinds[r.URL.Path]
	q := r.URL.Query()
	switch {
	case r.Method != http.MethodGet || !ok && !strings.HasPrefix(r.URL.Path, "/api/v1/nodes/"):
		http.NotFound(w, r)
	case !ok:
		a.mu.Lock()
		o := a.objects["/api/v1/nodes"]["/"+strings.TrimPrefix(r.URL.Path, "/api/v1/nodes/")]
		a.mu.Unlock()
		if o == nil {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", mediaType)
		_ = encoder.Encode(o, w)
	case q.Get("watch") == "true" || q.Get("watch") == "1":
		a.watch(w, r, kind)
	default:
		objects, version := a.list(r.URL.Path, named(r))
		list, err := scheme.Scheme.New(kind.GroupVersion().WithKind(kind.Kind + "List"))
		if err == nil {
			list.GetObjectKind().SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Kind + "List"))
			err = meta.SetList(list, objects)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		m, _ := meta.ListAccessor(list)
		m.SetResourceVersion(strconv.Itoa(version))
		w.Header().Set("Content-Type", mediaType)
		_ = encoder.Encode(list, w)
	}
}

func (a *API) watch(w http.ResponseWriter, r *http.Request, kind schema.GroupVersionKind) {
	w.Header().Set("Content-Type", mediaType+";stream=watch")
	frames := protobuf.LengthDelimitedFramer.NewFrameWriter(w)
	raw := protobuf.NewRawSerializer(scheme.Scheme, scheme.Scheme)
	flush := w.(http.Flusher).Flush
	send := func(what watch.EventType, o runtime.Object) error {
		var buf bytes.Buffer
		if err := encoder.Encode(o, &buf); err != nil {
			return err
		}
		return raw.Encode(&metav1.WatchEvent{Type: string(what), Object: runtime.RawExtension{Raw: buf.Bytes()}}, frames)
	}
	version, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		var objects []runtime.Object
		objects, version = a.list(r.URL.Path, named(r))
		for _, o := range objects {
			if send(watch.Added, o) != nil {
				return
			}
		}
		mark, err := scheme.Scheme.New(kind)
		if err != nil {
			return
		}
		mark.GetObjectKind().SetGroupVersionKind(kind)
		m, _ := meta.Accessor(mark)
		m.SetResourceVersion(strconv.Itoa(version))
		m.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
		if send(watch.Bookmark, mark) != nil {
			return
		}
	}
	flush()
	for {
		events, upTo, changed := a.after(r.URL.Path, named(r), version)
		for _, e := range events {
			if send(e.kind, e.object) != nil {
				return
			}
		}
		version = upTo
		if len(events) > 0 {
			flush()
		}
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		}
	}
}
