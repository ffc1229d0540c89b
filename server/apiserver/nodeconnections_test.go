// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestConnectionsToNodesAreShared: the connections that one user keeps open to one node are bounded, and so are those
// to pods of one namespace, however many users and ServiceAccounts it has. Others, other nodes and other requests are
// served meanwhile, and the same ones once connections have ended.
func TestConnectionsToNodesAreShared(t *testing.T) {
	pods := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	for _, at := range []string{"tb/web n1", "tb/web2 n1", "tb/far n2", "ta/web n1"} {
		name, node, _ := strings.Cut(at, " ")
		ns, name, _ := strings.Cut(name, "/")
		testenv.NoError(t, pods.Add(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: corev1.PodSpec{NodeName: node}}))
	}
	type marked struct{}
	n := &nodeConnections{
		pods: corelisters.NewPodLister(pods), open: map[nodeShare]int{},
		aggregated: func(i *request.RequestInfo) bool { return i.APIGroup == "vm.example" },
		forUser:    func(ctx context.Context) context.Context { return context.WithValue(ctx, marked{}, true) },
	}
	infos := request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}
	var running sync.WaitGroup
	defer running.Wait()
	free := make(chan struct{})
	defer close(free)
	serve := func(who, path string, api http.HandlerFunc) *httptest.ResponseRecorder {
		w, r := httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, nil)
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", "SPDY/3.1")
		ctx := request.WithUser(r.Context(), &user.DefaultInfo{Name: who})
		ctx = request.WithRequestInfo(ctx, testenv.Must(infos.NewRequestInfo(r))(t))
		n.limit(api).ServeHTTP(w, r.WithContext(ctx))
		return w
	}
	keep := func(who, path string) { // until the end of the test
		t.Helper()
		served := make(chan int, 1)
		running.Go(func() {
			w := serve(who, path, func(_ http.ResponseWriter, r *http.Request) {
				testenv.True(t, r.Context().Value(marked{}) != nil, "the connection is not marked as a user's")
				served <- http.StatusOK
				<-free
			})
			if w.Code != http.StatusOK {
				served <- w.Code
			}
		})
		testenv.Equal(t, <-served, http.StatusOK, "%s, %s:", who, path)
	}
	code := func(who, path string) (int, string) {
		w := serve(who, path, func(http.ResponseWriter, *http.Request) {})
		return w.Code, w.Body.String()
	}
	const forward = "/api/v1/namespaces/tb/pods/web/portforward"
	for i := range userNodeConnections {
		keep("bob", []string{forward, "/api/v1/namespaces/tb/pods/web2/exec", "/api/v1/namespaces/tb/pods/https:web2:8443/proxy/"}[i%3])
	}
	for _, other := range []string{forward, "/api/v1/namespaces/ta/pods/web/attach", "/api/v1/nodes/n1/proxy/"} {
		got, text := code("bob", other)
		testenv.Equal(t, got, http.StatusTooManyRequests, "%s:", other)
		testenv.Contains(t, text, "bob has 100 connections to the node n1", "%s:", other)
	}
	for _, free := range []string{"/api/v1/namespaces/tb/pods/far/exec", "/api/v1/namespaces/tb/pods/web/log", "/api/v1/namespaces/tb/pods"} {
		got, _ := code("bob", free)
		testenv.Equal(t, got, http.StatusOK, "%s:", free)
	}
	got, _ := code("ada", forward)
	testenv.Equal(t, got, http.StatusOK, "another user:")
	// ServiceAccounts of one namespace are one user.
	for i := range userNodeConnections {
		keep(fmt.Sprintf("system:serviceaccount:tb:sa%d", i), forward)
	}
	got, text := code("system:serviceaccount:tb:other", "/api/v1/namespaces/ta/pods/web/exec")
	testenv.True(t, got == http.StatusTooManyRequests && strings.Contains(text, "system:serviceaccounts:tb"), "one more ServiceAccount: %d %s", got, text)
	// The namespace has what it may have now, for any user.
	got, text = code("ada", forward)
	testenv.True(t, got == http.StatusTooManyRequests && strings.Contains(text, "the namespace tb has 200"), "one more user: %d %s", got, text)
	got, _ = code("ada", "/api/v1/namespaces/ta/pods/web/exec")
	testenv.Equal(t, got, http.StatusOK, "another namespace:")
	for range userNodeConnections {
		keep("eve", "/apis/vm.example/v1/namespaces/tb/machines/m/console")
	}
	got, _ = code("eve", "/api/v1/namespaces/tb/services/web/proxy/")
	testenv.Equal(t, got, http.StatusTooManyRequests, "nodes that are not known:")
	for range 3 * userNodeConnections {
		free <- struct{}{}
	}
	testenv.Until(t, patience, "a connection that has ended makes room", func() bool {
		got, _ := code("bob", forward)
		return got == http.StatusOK
	})
}
