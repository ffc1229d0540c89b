// SPDX-License-Identifier: Apache-2.0

package starting

import (
	"context"
	"crypto/tls"
	"log/slog"
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
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/server/handle"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// newPKI makes a cluster's keys, and the certificate of an API server at 127.0.0.1.
func newPKI(t *testing.T) *pki.PKI {
	t.Helper()
	p := testenv.Must(pki.Open(pki.Options{Dir: t.TempDir(), Clock: clock.RealClock{}, Logger: slog.New(slog.DiscardHandler)}))(t)
	testenv.NoError(t, p.Ensure(p.APIServer(pki.APIServerNames{NodeName: "boat", Domain: "cluster.local",
		IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})))
	return p
}

// TestKubectlIsAnsweredWhileStarting: the administrator's kubectl on the machine of a server that has no API yet is
// answered so, whatever it asks.
func TestKubectlIsAnsweredWhileStarting(t *testing.T) {
	keys := newPKI(t)
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = l.Close() })
	New(Options{PKI: keys, Store: new(handle.Store), Begin: func(answer func(net.Conn)) {
		go testenv.Accept(l, func(c net.Conn) { go answer(c) })
	}}).beginOnce()
	client := testenv.Must(kubernetes.NewForConfig(&rest.Config{
		Host: "https://" + l.Addr().String(), TLSClientConfig: rest.TLSClientConfig{CAData: keys.CAPEM(pki.ServerCA)},
	}))(t)
	maps := client.CoreV1().ConfigMaps("default")
	for what, ask := range map[string]func() error{
		"a list":                func() error { _, err := maps.List(t.Context(), metav1.ListOptions{}); return err },
		"a watch":               func() error { _, err := maps.Watch(t.Context(), metav1.ListOptions{}); return err },
		"what is not an object": func() error { return client.Discovery().RESTClient().Get().AbsPath("/version").Do(t.Context()).Error() },
		"a large write": func() error {
			_, err := maps.Create(t.Context(), &corev1.ConfigMap{Data: map[string]string{"x": strings.Repeat("x",
				maxRequest*9/10)}}, metav1.CreateOptions{})
			return err
		},
	} {
		if err := ask(); !apierrors.IsServiceUnavailable(err) || !strings.Contains(err.Error(), "is starting: its store is being opened") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestFirstReadyServerIsFound: of some servers the first is found whose API says that it is ready. It has to be one of
// the cluster's.
func TestFirstReadyServerIsFound(t *testing.T) {
	own, other := newPKI(t), newPKI(t)
	const address = "192.0.2.1:6443"
	s := New(Options{PKI: own, ServerName: "127.0.0.1", Address: func() string { return address }, Now: time.Now})
	s.readyTimeout = 2 * time.Minute
	serve := func(from *pki.PKI, status int) string {
		t.Helper()
		l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
		api := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/readyz" {
				status = http.StatusNotFound
			}
			w.WriteHeader(status)
		})}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = api.Serve(tls.NewListener(l, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate,
				error) {
				return from.Serving()
			}})) // it is closed
		}()
		t.Cleanup(func() {
			_ = api.Close()
			<-done
		})
		return l.Addr().String()
	}
	silent := testenv.Address(t, "127.0.0.1:0")
	ready, another, not, foreign := serve(own, http.StatusOK), serve(own, http.StatusOK), serve(own,
		http.StatusInternalServerError), serve(other, http.StatusOK)
	for _, c := range []struct {
		asked []string
		want  string
	}{
		{nil, ""},
		{[]string{"", address, not, foreign}, ""},
		{[]string{not, foreign, ready, another}, ready},
		{[]string{silent, another, ready}, another},
	} {
		testenv.Equal(t, s.readyOf(t.Context(), c.asked), c.want, "%v:", c.asked)
	}
}

// TestReadyServerIsKeptThroughElection: the server that answers in this one's place stays through an election of the
// others, and goes when none is ready for longer.
func TestReadyServerIsKeptThroughElection(t *testing.T) {
	var r readyServer
	for i, step := range []struct{ found, want string }{
		{"", ""}, {"a", "a"}, {"", "a"}, {"", "a"}, {"b", "b"}, {"", "b"}, {"", "b"}, {"", "b"}, {"", ""}, {"", ""}, {"a", "a"},
	} {
		testenv.Equal(t, r.update(step.found), step.want, "step %d:", i)
	}
}

// countedStore is a store whose first question to the others fails, and whose second one, 13 s after its start, is
// answered.
type countedStore struct {
	began   time.Time
	counted bool // the second answer
}

func (c countedStore) MembershipConfirmed() bool {
	return c.counted && time.Since(c.began) > 13*time.Second
}

// TestFailoverTargetAfterMembershipIsConfirmed: while the store of a starting server waits, another server answers in
// its place only once one has said that it counts this one. A server that was removed would have its node register
// again.
func TestFailoverTargetAfterMembershipIsConfirmed(t *testing.T) {
	for what, c := range map[string]struct {
		counted bool
		after   map[time.Duration]bool // whether another server answers
	}{
		"removed": {false, map[time.Duration]bool{9 * time.Second: false, 16 * time.Second: false, time.Minute: false}},
		"counted": {true, map[time.Duration]bool{9 * time.Second: false, 16 * time.Second: true, time.Minute: true}},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := New(Options{Begin: func(func(net.Conn)) {}, Address: func() string { return "" }})
				ctx, cancel := context.WithCancel(t.Context())
				var finding sync.WaitGroup
				began := time.Now()
				finding.Go(func() {
					s.findFailoverTarget(ctx, countedStore{began, c.counted}, func() []string { return []string{"192.0.2.1:6443"} },
						func(_ context.Context, addresses []string) string { return addresses[len(addresses)-1] })
				})
				for _, after := range slices.Sorted(maps.Keys(c.after)) {
					time.Sleep(time.Until(began.Add(after)))
					synctest.Wait()
					testenv.Equal(t, s.FailoverTargets() != nil, c.after[after], "after %v another server answers:", after)
				}
				cancel()
				finding.Wait()
			})
		})
	}
}
