// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/tls"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestAnswerStarting: the administrator's kubectl on the machine of a server that has no API yet is told so, whatever
// it asks.
func TestAnswerStarting(t *testing.T) {
	s := listening(t, "")
	t.Cleanup(s.localFailover.End)
	s.starting.begin()
	config, err := clientcmd.BuildConfigFromFlags("", s.o.Kubeconfigs[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	maps := client.CoreV1().ConfigMaps("default")
	for what, ask := range map[string]func() error{
		"a list":                func() error { _, err := maps.List(t.Context(), metav1.ListOptions{}); return err },
		"a watch":               func() error { _, err := maps.Watch(t.Context(), metav1.ListOptions{}); return err },
		"what is not an object": func() error { return client.Discovery().RESTClient().Get().AbsPath("/version").Do(t.Context()).Error() },
		"a large write": func() error {
			_, err := maps.Create(t.Context(), &corev1.ConfigMap{Data: map[string]string{"x": strings.Repeat("x", mostAsked*9/10)}}, metav1.CreateOptions{})
			return err
		},
	} {
		if err := ask(); !apierrors.IsServiceUnavailable(err) || !strings.Contains(err.Error(), "is starting: its store is being opened") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestReadyOf: of some servers the first is found whose API says that it is ready. It has to be one of the cluster's.
func TestReadyOf(t *testing.T) {
	s := listening(t, "")
	serve := func(from *Server, status int) string {
		t.Helper()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		api := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/readyz" {
				status = http.StatusNotFound
			}
			w.WriteHeader(status)
		})}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = api.Serve(tls.NewListener(l, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return from.pki.Serving() }})) // it is closed
		}()
		t.Cleanup(func() {
			_ = api.Close()
			<-done
		})
		return l.Addr().String()
	}
	other := listening(t, "")
	silent := testenv.Address(t, "127.0.0.1:0")
	ready, another, not, foreign := serve(s, http.StatusOK), serve(s, http.StatusOK), serve(s, http.StatusInternalServerError), serve(other, http.StatusOK)
	for _, c := range []struct {
		asked []string
		want  string
	}{
		{nil, ""},
		{[]string{"", s.peerAddress(), not, foreign}, ""},
		{[]string{not, foreign, ready, another}, ready},
		{[]string{silent, another, ready}, another},
	} {
		if got := s.readyOf(t.Context(), c.asked); got != c.want {
			t.Errorf("%v: %q, want %q", c.asked, got, c.want)
		}
	}
}

// TestServerName: where a server listens at one address alone, its machine's programs ask there and take any server's
// certificate.
func TestServerName(t *testing.T) {
	for address, want := range map[string]string{"": "", "0.0.0.0": "", "::": "", "127.0.0.1": "", "192.0.2.1": everyServer, "2001:db8::1": everyServer} {
		s := &Server{o: Options{BindAddress: net.ParseIP(address)}}
		if got := s.serverName(); got != want {
			t.Errorf("%q: %q, want %q", address, got, want)
		}
	}
}

// TestReadyServer: the server that answers in this one's place stays through an election of the others, and goes when
// none is ready for longer.
func TestReadyServer(t *testing.T) {
	var r readyServer
	for i, step := range []struct{ found, want string }{
		{"", ""}, {"a", "a"}, {"", "a"}, {"", "a"}, {"b", "b"}, {"", "b"}, {"", "b"}, {"", "b"}, {"", ""}, {"", ""}, {"a", "a"},
	} {
		if got := r.update(step.found); got != step.want {
			t.Errorf("step %d: %q instead of %q", i, got, step.want)
		}
	}
}

// countedStore is a store whose first question to the others fails, and whose second one, 13 s after its start, is
// answered.
type countedStore struct {
	began   time.Time
	counted bool // the second answer
}

func (c countedStore) Counted() bool { return c.counted && time.Since(c.began) > 13*time.Second }

// noListener has an address only.
type noListener struct{ net.Listener }

func (noListener) Addr() net.Addr { return &net.UnixAddr{} }

// TestFindElsewhereOfCounted: while the store of a starting server waits, another server answers in its place only once
// one has said that it counts this one. A server that was removed would have its node register again.
func TestFindElsewhereOfCounted(t *testing.T) {
	for what, c := range map[string]struct {
		counted bool
		after   map[time.Duration]bool // whether another server answers
	}{
		"removed": {false, map[time.Duration]bool{9 * time.Second: false, 16 * time.Second: false, time.Minute: false}},
		"counted": {true, map[time.Duration]bool{9 * time.Second: false, 16 * time.Second: true, time.Minute: true}},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &Server{listener: noListener{}}
				s.starting = newStarting(s)
				s.starting.begin = func() {}
				ctx, cancel := context.WithCancel(t.Context())
				var finding sync.WaitGroup
				began := time.Now()
				finding.Go(func() {
					s.findElsewhere(ctx, countedStore{began, c.counted}, func() []string { return []string{"192.0.2.1:6443"} },
						func(_ context.Context, addresses []string) string { return addresses[len(addresses)-1] })
				})
				for _, after := range slices.Sorted(maps.Keys(c.after)) {
					time.Sleep(time.Until(began.Add(after)))
					synctest.Wait()
					if got := s.elsewhere() != nil; got != c.after[after] {
						t.Errorf("after %v another server answers: %v", after, got)
					}
				}
				cancel()
				finding.Wait()
			})
		})
	}
}
