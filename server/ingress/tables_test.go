// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

var node = &user.DefaultInfo{Name: nodePrefix + "a", Groups: []string{user.NodesGroup}}

func ask(ctx context.Context, who user.Info, method string) *http.Request {
	r := httptest.NewRequest(method, table.Path, nil)
	ctx = request.WithUser(request.WithRequestInfo(ctx, &request.RequestInfo{Path: table.Path}), who)
	return r.WithContext(ctx)
}

func TestOnlyNodesMayReadIngressTables(t *testing.T) {
	for _, c := range []struct {
		name   string
		who    user.Info
		method string
		want   int
	}{
		{"a node", node, http.MethodGet, http.StatusServiceUnavailable},
		{"a node that writes", node, http.MethodPost, http.StatusMethodNotAllowed},
		{"an administrator, who may ask for any path", &user.DefaultInfo{Name: "admin", Groups: []string{user.SystemPrivilegedGroup}}, http.MethodGet, http.StatusForbidden},
		{"a name like a node's", &user.DefaultInfo{Name: nodePrefix + "a", Groups: []string{user.AllAuthenticated}}, http.MethodGet, http.StatusForbidden},
		{"the group of nodes alone", &user.DefaultInfo{Name: "a", Groups: []string{user.NodesGroup}}, http.MethodGet, http.StatusForbidden},
	} {
		t.Run(c.name, func(t *testing.T) {
			tables, w := New(Options{}), httptest.NewRecorder()
			tables.Begin = func(context.Context) (func(), error) { return func() {}, errors.New("no table yet") }
			tables.ServeHTTP(w, ask(t.Context(), c.who, c.method))
			testenv.Equal(t, w.Code, c.want, "the answer is")
		})
	}
}

// bed is a server's tables in fake time.
type bed struct {
	*testing.T
	client *fake.Clientset
	tables *Tables
}

func run(t *testing.T, test func(b bed)) {
	synctest.Test(t, func(t *testing.T) {
		b := bed{T: t, client: fake.NewClientset()}
		b.tables = New(Options{Client: b.client, Metadata: &metadataAPI{client: b.client}, Logger: slog.New(slog.DiscardHandler)})
		b.tables.Duration = time.Hour
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { b.tables.Run(ctx) })
		test(b)
		cancel()
		running.Wait()
	})
}

// follower is a node that hears of the table.
type follower struct {
	end   context.CancelFunc
	ended sync.WaitGroup

	mu  sync.Mutex
	now table.Sections
}

// Header, WriteHeader, Write and Flush implement http.ResponseWriter and http.Flusher.
func (f *follower) Header() http.Header { return http.Header{} }
func (f *follower) WriteHeader(int)     {}
func (f *follower) Flush()              {}
func (f *follower) Write(text []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var c table.Change
	if err := json.Unmarshal(text, &c); err != nil {
		return 0, err
	}
	if !c.Commit {
		f.now.Apply(c)
	}
	return len(text), nil
}

func (b bed) follow() *follower {
	ctx, cancel := context.WithCancel(b.Context())
	f := &follower{end: cancel, now: table.Sections{}}
	f.ended.Go(func() { b.tables.ServeHTTP(f, ask(ctx, node, http.MethodGet)) })
	return f
}

func (f *follower) keys() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(slices.Sorted(maps.Keys(f.now)), " ")
}

func (b bed) watches() int {
	n := 0
	for _, a := range b.client.Actions() {
		if a.GetVerb() == "watch" {
			n++
		}
	}
	return n
}

func TestNodesHearOfIngresses(t *testing.T) {
	run(t, func(b bed) {
		time.Sleep(time.Hour)
		testenv.Equal(t, b.watches(), 0, "watches while no node asks:")
		f, g := b.follow(), b.follow()
		time.Sleep(time.Second)
		testenv.Equal(t, b.watches(), 4, "watches for two nodes:")
		ing := &networkingv1.Ingress{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
			Spec: networkingv1.IngressSpec{
				IngressClassName: ptr.To(compile.Class), TLS: []networkingv1.IngressTLS{{SecretName: "cert"}},
				Rules: []networkingv1.IngressRule{{Host: "web.example"}},
			},
		}
		testenv.Must(b.client.NetworkingV1().Ingresses("shop").Create(b.Context(), ing, metav1.CreateOptions{}))(t)
		time.Sleep(time.Second)
		for _, one := range []*follower{f, g} {
			testenv.Equal(t, one.keys(), "host/ingress/web.example", "it hears of")
		}
		testenv.NoError(t, b.client.NetworkingV1().Ingresses("shop").Delete(b.Context(), "web", metav1.DeleteOptions{}))
		time.Sleep(time.Second)
		testenv.Equal(t, f.keys(), "", "it still hears of")
		f.end()
		g.end()
		f.ended.Wait()
		g.ended.Wait()
		time.Sleep(2 * lingerTime)
		before := b.watches()
		late := b.follow()
		time.Sleep(time.Second)
		testenv.Equal(t, b.watches()-before, 4, "new watches for a node that asks after all have gone:")
		late.end()
		late.ended.Wait()
	})
}

// TestNodesHearOfTheAccount: the thumbprint of the ACME account and the default certificate reach nodes without a
// further watch.
func TestNodesHearOfTheAccount(t *testing.T) {
	run(t, func(b bed) {
		ing := &networkingv1.Ingress{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Annotations: map[string]string{"kubernetes.io/tls-acme": "true"}},
			Spec: networkingv1.IngressSpec{
				IngressClassName: ptr.To(compile.Class), TLS: []networkingv1.IngressTLS{{SecretName: "cert", Hosts: []string{"h.example"}}},
				Rules: []networkingv1.IngressRule{{Host: "h.example"}},
			},
		}
		testenv.Must(b.client.NetworkingV1().Ingresses("shop").Create(b.Context(), ing, metav1.CreateOptions{}))(t)
		f := b.follow()
		time.Sleep(time.Second)
		before := b.watches()
		for name, data := range map[string]map[string][]byte{
			compile.Account.Name: {corev1.TLSCertKey: {}, corev1.TLSPrivateKeyKey: []byte("key"), compile.ThumbprintKey: []byte("thumb")}, compile.DefaultCertificate.Name: pair(t),
		} {
			s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: name}, Type: corev1.SecretTypeTLS, Data: data}
			testenv.Must(b.client.CoreV1().Secrets(metav1.NamespaceSystem).Create(b.Context(), s, metav1.CreateOptions{}))(t)
		}
		time.Sleep(time.Second)
		testenv.Equal(t, f.keys(), "certificate/kube-system/ingress-default challenges/h.example host/ingress/h.example", "it hears of")
		testenv.Equal(t, b.watches()-before, 0, "more watches:")
		f.end()
		f.ended.Wait()
	})
}

// TestSecretsOfOtherTypes: one that is not of the type for certificates is read by its name.
func TestSecretsOfOtherTypes(t *testing.T) {
	run(t, func(b bed) {
		// What the informer asks for has none of that type; the fake client knows no field selectors.
		b.client.PrependReactor("list", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) { return true, &corev1.SecretList{}, nil })
		b.client.PrependWatchReactor("secrets", func(clienttesting.Action) (bool, watch.Interface, error) { return true, watch.NewFake(), nil })
		ing := &networkingv1.Ingress{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
			Spec:       networkingv1.IngressSpec{IngressClassName: ptr.To(compile.Class), TLS: []networkingv1.IngressTLS{{SecretName: "cert"}}, Rules: []networkingv1.IngressRule{{Host: "h"}}},
		}
		testenv.Must(b.client.NetworkingV1().Ingresses("shop").Create(b.Context(), ing, metav1.CreateOptions{}))(t)
		f := b.follow()
		time.Sleep(time.Second)
		cert := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "cert"}, Type: corev1.SecretTypeOpaque, Data: pair(t)}
		testenv.Must(b.client.CoreV1().Secrets("shop").Create(b.Context(), cert, metav1.CreateOptions{}))(t)
		time.Sleep(time.Second)
		testenv.Equal(t, f.keys(), "certificate/shop/cert host/ingress/h", "it hears of")
		f.end()
		f.ended.Wait()
	})
}

// pair is a certificate with its key, as a Secret has them.
func pair(t *testing.T) map[string][]byte {
	ca := testenv.Must(testca.New(t.TempDir()))(t)
	files, err := ca.Issue("h", "h")
	testenv.NoError(t, err)
	out := map[string][]byte{}
	for name, file := range map[string]string{corev1.TLSCertKey: files.Cert, corev1.TLSPrivateKeyKey: files.Key} {
		out[name], err = os.ReadFile(file)
		testenv.NoError(t, err)
	}
	return out
}

// TestDefaultsOfIngresses: a change of the ConfigMap reaches nodes.
func TestDefaultsOfIngresses(t *testing.T) {
	run(t, func(b bed) {
		// The fake client knows no field selectors.
		ing := &networkingv1.Ingress{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
			Spec: networkingv1.IngressSpec{IngressClassName: ptr.To(compile.Class), Rules: []networkingv1.IngressRule{{Host: "h", IngressRuleValue: networkingv1.IngressRuleValue{
				HTTP: &networkingv1.HTTPIngressRuleValue{Paths: []networkingv1.HTTPIngressPath{{Path: "/", Backend: networkingv1.IngressBackend{
					Service: &networkingv1.IngressServiceBackend{Name: "web", Port: networkingv1.ServiceBackendPort{Number: 80}},
				}}}},
			}}}},
		}
		testenv.Must(b.client.NetworkingV1().Ingresses("shop").Create(b.Context(), ing, metav1.CreateOptions{}))(t)
		f := b.follow()
		time.Sleep(time.Second)
		m := &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: compile.Defaults.Namespace, Name: compile.Defaults.Name},
			Data:       map[string]string{"proxy-body-size": "1k", "add-headers": "shop/headers"},
		}
		headers := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "headers"}, Data: map[string]string{"X-Frame-Options": "DENY"}}
		for _, one := range []*corev1.ConfigMap{headers, m} {
			testenv.Must(b.client.CoreV1().ConfigMaps(one.Namespace).Create(b.Context(), one, metav1.CreateOptions{}))(t)
		}
		time.Sleep(time.Second)
		f.mu.Lock()
		got := string(f.now[table.HostKey(table.SiteIngress, "h")])
		f.mu.Unlock()
		testenv.False(t, !strings.Contains(got, `"bodyLimit":1024`) || !strings.Contains(got, "X-Frame-Options"), "the host is %s", got)
		f.end()
		f.ended.Wait()
	})
}
