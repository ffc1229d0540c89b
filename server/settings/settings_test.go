// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// bed is a server's settings, on a store that is a fake.
type bed struct {
	*testing.T
	*Settings
	client *fake.Clientset
	url    string
	reads  atomic.Int32
	fails  atomic.Bool
	gate   chan struct{} // closed: reads are answered

	mu     sync.Mutex
	denied string // the ConfigMap that no client may watch
	asked  []authorizer.Attributes
}

func newBed(t *testing.T, has ...runtime.Object) *bed {
	t.Helper()
	b := &bed{T: t, client: fake.NewClientset(has...), gate: make(chan struct{})}
	close(b.gate)
	b.client.PrependReactor("get", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
		b.reads.Add(1)
		<-b.gate
		if b.fails.Load() {
			return true, nil, errors.New("no majority")
		}
		return false, nil, nil
	})
	b.Settings = New(b.client, authorizer.AuthorizerFunc(b.authorize), slog.New(slog.DiscardHandler))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.ServeHTTP(w, r.WithContext(request.WithUser(r.Context(), &user.DefaultInfo{Name: "someone"})))
	}))
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { b.Settings.Run(ctx) })
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		cancel()
		running.Wait()
	})
	b.url = server.URL
	return b
}

// authorize is an authorizer.AuthorizerFunc.
func (b *bed) authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.asked = append(b.asked, a); a.GetName() == b.denied {
		return authorizer.DecisionNoOpinion, "", nil
	}
	return authorizer.DecisionAllow, "", nil
}

// watching waits until the store is watched: a fake tells a watch nothing of what happened between the list and its
// beginning.
func (b *bed) watching() {
	b.Helper()
	testenv.Until(b, 2*time.Minute, "all settings are watched", func() bool {
		n := 0
		for _, a := range b.client.Actions() {
			if a.GetVerb() == "watch" {
				n++
			}
		}
		return n >= len(clustersettings.Names())
	})
}

func configMap(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: metav1.NamespaceSystem}, Data: data}
}

// stream is what one client receives.
type stream struct {
	*bed
	words chan string // capacity 100: more than any test has
}

func (b *bed) open(names ...string) *stream {
	b.Helper()
	answer := testenv.Must(http.Get(b.url + clustersettings.Path + "?" + url.Values{clustersettings.Parameter: names}.Encode()))(b)
	testenv.Require(b, answer.StatusCode == http.StatusOK, "%v", answer.Status)
	s := &stream{b, make(chan string, 100)}
	b.Cleanup(func() { answer.Body.Close() })
	go func() { // ends with the answer's body
		defer close(s.words)
		for d := json.NewDecoder(answer.Body); ; {
			var w clustersettings.Event
			if d.Decode(&w) != nil {
				return
			}
			s.words <- fmt.Sprintf("%s %v %t", w.Name, map[string]string(w.Data), w.Data == nil)
		}
	}()
	return s
}

func (s *stream) hears(want string) {
	s.Helper()
	select {
	case w := <-s.words:
		testenv.Equal(s, w, want, "it hears")
	case <-time.After(2 * time.Minute):
		s.Fatalf("it does not hear %q", want)
	}
}

// TestStreamBeginsWithStateAndFollowsChanges: a stream begins with all that is asked for, also what is not there, and
// goes on with each change.
func TestStreamBeginsWithStateAndFollowsChanges(t *testing.T) {
	b := newBed(t, configMap(clustersettings.DNS, map[string]string{"a.override": "x"}), configMap("other", map[string]string{"secret": "1"}))
	s := b.open(clustersettings.DNS, clusterconfig.VIPConfigMap)
	s.hears("coredns-custom map[a.override:x] false")
	s.hears("vip.coracle map[] true")
	b.watching()
	maps := b.client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	testenv.Must(maps.Create(t.Context(), configMap(clusterconfig.VIPConfigMap, nil), metav1.CreateOptions{}))(t)
	s.hears("vip.coracle map[] false")
	testenv.Must(maps.Create(t.Context(), configMap(clusterconfig.BackendConfigMap, map[string]string{"b": "c"}), metav1.CreateOptions{}))(t)
	testenv.NoError(t, maps.Delete(t.Context(), clustersettings.DNS, metav1.DeleteOptions{}))
	s.hears("coredns-custom map[] true") // and nothing of what it has not asked for
	late := b.open(clusterconfig.BackendConfigMap)
	late.hears(clusterconfig.BackendConfigMap + " map[b:c] false")
}

// TestUnknownSettingsAreSkipped: a node of a later version, which also asks for a name that this server does not know,
// gets the others.
func TestUnknownSettingsAreSkipped(t *testing.T) {
	b := newBed(t, configMap("other", map[string]string{"secret": "1"}))
	s := b.open(clustersettings.DNS, "other", clusterconfig.VIPConfigMap)
	s.hears("coredns-custom map[] true")
	s.hears("vip.coracle map[] true")
}

// TestSettingsStreamNeedsWatchPermission: each ConfigMap is asked for as a watch of it, one that is refused refuses
// all, and there is nothing but those that all nodes follow.
func TestSettingsStreamNeedsWatchPermission(t *testing.T) {
	b := newBed(t, configMap("other", map[string]string{"secret": "1"}))
	get := func(method, query string) int {
		r := testenv.Must(http.NewRequestWithContext(t.Context(), method, b.url+clustersettings.Path+"?"+query, nil))(t)
		answer := testenv.Must(http.DefaultClient.Do(r))(t)
		defer answer.Body.Close()
		return answer.StatusCode
	}
	b.denied = clustersettings.DNS
	for _, c := range []struct {
		method, query string
		want          int
	}{
		{"GET", "", http.StatusBadRequest},
		{"GET", "name=other", http.StatusNotFound},
		{"GET", "name=vip.coracle&name=coredns-custom", http.StatusForbidden},
		{"POST", "name=vip.coracle", http.StatusMethodNotAllowed},
	} {
		testenv.Equal(t, get(c.method, c.query), c.want, "%s %s:", c.method, c.query)
	}
	testenv.Equal(t, b.reads.Load(), 0, "the store was asked for who may hear nothing:")
	b.open(clusterconfig.VIPConfigMap, clusterconfig.BackendConfigMap)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, a := range b.asked {
		if a.GetVerb() != "watch" || a.GetResource() != "configmaps" || a.GetNamespace() != "kube-system" || a.GetAPIGroup() != "" || !a.IsResourceRequest() || a.GetUser().GetName() != "someone" {
			t.Errorf("asked whether %+v", a)
		}
	}
	testenv.True(t, slices.ContainsFunc(b.asked, func(a authorizer.Attributes) bool { return a.GetName() == clusterconfig.BackendConfigMap }), "the authorizer was not asked who may watch the back end")
}

// TestStreamNeedsAMajorityToBegin: a stream begins with what the store says after it was asked for, or not at all. One
// that has begun stays.
func TestStreamNeedsAMajorityToBegin(t *testing.T) {
	b := newBed(t)
	s := b.open(clusterconfig.VIPConfigMap)
	s.hears("vip.coracle map[] true")
	b.watching()
	b.fails.Store(true)
	begin, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	testenv.ErrorIs(t, b.fresh(begin), context.DeadlineExceeded, "without a majority")
	testenv.NoError(t, testenv.Err(b.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Create(t.Context(), configMap(clusterconfig.VIPConfigMap, map[string]string{"a": "1"}), metav1.CreateOptions{})))
	b.fails.Store(false)
	s.hears("vip.coracle map[a:1] false")
}

// TestOneCannotBeRead: streams go on with the others, whatever is the matter with one.
func TestOneCannotBeRead(t *testing.T) {
	b := newBed(t)
	s := b.open(clustersettings.DNS, clusterconfig.VIPConfigMap)
	s.hears("coredns-custom map[] true")
	s.hears("vip.coracle map[] true")
	b.watching()
	b.client.PrependReactor("get", "configmaps", func(a clienttesting.Action) (bool, runtime.Object, error) {
		return a.(clienttesting.GetAction).GetName() == clustersettings.DNS, nil, errors.New("no key decrypts it")
	})
	testenv.NoError(t, testenv.Err(b.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Create(t.Context(), configMap(clusterconfig.VIPConfigMap, map[string]string{"a": "1"}), metav1.CreateOptions{})))
	s.hears("vip.coracle map[a:1] false")
}

// TestSimultaneousStreamsShareReads: nodes that come at the same time share what is read.
func TestSimultaneousStreamsShareReads(t *testing.T) {
	b := newBed(t, configMap(clusterconfig.VIPConfigMap, map[string]string{"a": "1"}))
	b.gate = make(chan struct{})
	var coming sync.WaitGroup
	var received atomic.Int32
	for range 200 {
		coming.Go(func() {
			received.Add(1)
			answer, err := http.Get(b.url + clustersettings.Path + "?name=" + clusterconfig.VIPConfigMap)
			if err != nil {
				t.Error(err)
				return
			}
			defer answer.Body.Close()
			var w clustersettings.Event
			if err := json.NewDecoder(answer.Body).Decode(&w); err != nil || w.Data["a"] != "1" {
				t.Errorf("%+v, %v", w, err)
			}
		})
	}
	testenv.Until(t, 2*time.Minute, "nodes come and the store is asked", func() bool { return received.Load() == 200 && b.reads.Load() > 0 })
	close(b.gate)
	coming.Wait()
	t.Log(b.reads.Load(), "reads for 200 nodes")
}

// TestSettingsStreamsEndInOrder: a stream ends when it is time, in order.
func TestSettingsStreamsEndInOrder(t *testing.T) {
	b := newBed(t)
	b.Duration = time.Millisecond
	answer := testenv.Must(http.Get(b.url + clustersettings.Path + "?name=" + clusterconfig.VIPConfigMap))(t)
	defer answer.Body.Close()
	testenv.Equal(t, string(testenv.Must(io.ReadAll(answer.Body))(t)), `{"name":"vip.coracle","data":null}`+"\n", "")
}

// TestUnusedSettingsReadNothing: a server of which no client asks reads nothing.
func TestUnusedSettingsReadNothing(t *testing.T) {
	b := newBed(t)
	b.Settings.readRequested.Send()
	testenv.Until(t, 2*time.Minute, "it reads when it is asked", func() bool { return b.reads.Load() > 0 })
	c := fake.NewClientset()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		New(c, authorizer.AuthorizerFunc(b.authorize), slog.New(slog.DiscardHandler)).Run(ctx)
	}()
	cancel()
	<-done
	testenv.False(t, len(c.Actions()) > 0, "it did %v", c.Actions())
}

// TestDeletedAtTheBeginning: the store is read before its watches have begun. What is deleted in between is heard of,
// too.
func TestDeletedAtTheBeginning(t *testing.T) {
	b := newBed(t, configMap(clustersettings.DNS, map[string]string{"a.override": "x"}))
	var heard, deleted atomic.Bool
	b.client.PrependReactor("list", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
		if !heard.Load() {
			return true, nil, errors.New("not yet")
		}
		if deleted.CompareAndSwap(false, true) {
			return false, nil, b.client.Tracker().Delete(corev1.SchemeGroupVersion.WithResource("configmaps"), metav1.NamespaceSystem, clustersettings.DNS)
		}
		return false, nil, nil
	})
	s := b.open(clustersettings.DNS)
	s.hears("coredns-custom map[a.override:x] false")
	heard.Store(true)
	s.hears("coredns-custom map[] true")
}

// blocked is a response that is not read: a write does not return before the test ends.
type blocked struct {
	http.ResponseWriter
	wrote chan *byte // capacity 1: the first byte of what is being written
	over  <-chan struct{}
}

func (b *blocked) Write(text []byte) (int, error) {
	b.wrote <- &text[0]
	<-b.over
	return 0, errors.New("over")
}

func (b *blocked) Flush() {}

// TestUnreadStreamsShareOneText: however many do not read what they asked for, its text is there once.
func TestUnreadStreamsShareOneText(t *testing.T) {
	b := newBed(t, configMap(clustersettings.DNS, map[string]string{"a.override": strings.Repeat("x", 1<<20)}))
	ctx, cancel := context.WithCancel(t.Context())
	var streams sync.WaitGroup
	defer streams.Wait()
	defer cancel()
	var first *byte
	for range 10 {
		w := &blocked{ResponseWriter: httptest.NewRecorder(), wrote: make(chan *byte, 1), over: ctx.Done()}
		r := httptest.NewRequestWithContext(request.WithUser(ctx, &user.DefaultInfo{}), http.MethodGet, clustersettings.Path+"?name="+clustersettings.DNS, nil)
		streams.Go(func() { b.ServeHTTP(w, r) })
		text := <-w.wrote
		if first == nil {
			first = text
		}
		testenv.Require(t, text == first, "there is a text for each")
	}
}
