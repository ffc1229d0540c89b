// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestAskReturnsOtherServersFinding(t *testing.T) {
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, l, func(ctx context.Context, node string) Finding {
			switch node {
			case "heard":
				return Connected
			case "reachable":
				return Reachable
			case "slow":
				<-ctx.Done()
			case "from the future":
				return 7
			}
			return Unresponsive
		})
	}()
	defer func() {
		cancel()
		testenv.Check(t, <-done)
	}()
	dial := func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}
	idle, err := dial(ctx) // says nothing and holds no other up
	testenv.NoError(t, err)
	defer idle.Close()
	for node, want := range map[string]Finding{
		"heard": Connected, "reachable": Reachable, "another": Unresponsive, "from the future": Unresponsive, "": Unresponsive, strings.Repeat("x", 300): Unresponsive,
	} {
		testenv.Equal(t, QueryPeer(ctx, dial, node), want, "%q:", node)
	}
	short, cancelShort := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancelShort()
	testenv.Equal(t, QueryPeer(short, dial, "slow"), Unresponsive, "a server that does not answer in time:")
	unreachable := func(context.Context) (net.Conn, error) { return nil, errors.New("nobody") }
	testenv.Equal(t, QueryPeer(ctx, unreachable, "heard"), Unresponsive, "a server that is not there:")
}

// A machine that refuses connections lives as well as one that takes them.
func TestRefusingMachineLives(t *testing.T) {
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	testenv.False(t, Reach(t.Context(), n), "a node without an address is reached")
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}}
	n.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(l.Addr().(*net.TCPAddr).Port)
	testenv.True(t, Reach(t.Context(), n), "a port that is open is not reached")
	testenv.Check(t, l.Close())
	testenv.True(t, Reach(t.Context(), n), "a port that refuses is not reached")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	testenv.False(t, Reach(ended, n), "something was reached in no time")
}

// Only a node's own certificate shows that it is the node that answers.
func TestOnlyTheNodesCertificateProvesLife(t *testing.T) {
	dir := t.TempDir()
	ca := testenv.Must(testca.New(dir))(t)
	other := testenv.Must(testca.New(t.TempDir()))(t)
	pem := testenv.Must(os.ReadFile(filepath.Join(dir, "ca.crt")))(t)
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(pem)
	for what, tt := range map[string]struct {
		ca   *testca.Authority
		name string
		want bool
	}{
		"the node":                          {ca, "n1", true},
		"another node":                      {ca, "n2", false},
		"another cluster's node":            {other, "n1", false},
		"a router, which speaks no TLS":     {nil, "", false},
		"a machine that refuses connection": {nil, "closed", false},
	} {
		l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}}
		n.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(l.Addr().(*net.TCPAddr).Port)
		config := &tls.Config{}
		if tt.ca != nil {
			files := testenv.Must(tt.ca.Issue(tt.name, tt.name))(t)
			pair := testenv.Must(tls.LoadX509KeyPair(files.Cert, files.Key))(t)
			config.Certificates = []tls.Certificate{pair}
		}
		if tt.name == "closed" {
			_ = l.Close()
		}
		var serving sync.WaitGroup
		serving.Go(func() {
			testenv.Accept(l, func(c net.Conn) {
				serving.Go(func() {
					defer c.Close()
					if tt.ca == nil {
						_, _ = c.Write([]byte("220 router\r\n"))
						return
					}
					_ = tls.Server(c, config).HandshakeContext(t.Context()) // the other end says what it was
				})
			})
		})
		proves := func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			return ProvesIdentity(ctx, n, authorities, time.Now())
		}
		if tt.want { // a busy machine may take longer to connect to itself than one that is near does to answer
			testenv.Until(t, 2*time.Minute, what+" proves that it lives", proves)
		} else if proves() {
			t.Errorf("%s proves that it lives", what)
		}
		_ = l.Close()
		serving.Wait()
	}
}

// TestSlowNodeBesideAFastMachineCanBeChecked: a node counts as one that a check can tell about if its machine answers
// in half of a check's time, however long the node itself needs then.
func TestSlowNodeBesideAFastMachineCanBeChecked(t *testing.T) {
	dir := t.TempDir()
	ca := testenv.Must(testca.New(dir))(t)
	files := testenv.Must(ca.Issue("n1", "n1"))(t)
	pair := testenv.Must(tls.LoadX509KeyPair(files.Cert, files.Key))(t)
	pem := testenv.Must(os.ReadFile(files.CA))(t)
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(pem)
	now := time.Now()
	kubelet := &tls.Config{Certificates: []tls.Certificate{pair}}
	server := &tls.Config{RootCAs: authorities, ServerName: "n1", MinVersion: tls.VersionTLS12, Time: func() time.Time { return now }}
	for _, tt := range []struct {
		machine, node time.Duration // until it answers
		want          bool
	}{
		{0, 0, true},
		{nearResponse - 50*time.Millisecond, 0, true},
		{nearResponse - 50*time.Millisecond, time.Second, true},
		{nearResponse + 50*time.Millisecond, 0, false},
		{900 * time.Millisecond, 900 * time.Millisecond, false}, // over a satellite
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			var serving sync.WaitGroup
			defer serving.Wait()
			far := func(dialing context.Context, _, _ string) (net.Conn, error) {
				select {
				case <-dialing.Done():
					return nil, dialing.Err()
				case <-time.After(tt.machine):
				}
				here, there := net.Pipe()
				serving.Go(func() {
					defer there.Close()
					time.Sleep(tt.node)                                  // fake time
					_ = tls.Server(there, kubelet).HandshakeContext(ctx) // the other end says what it was
				})
				return here, nil
			}
			testenv.Equal(t, provesIdentity(ctx, "n1", server, far), tt.want, "the machine answers after %v, the node after %v more:", tt.machine, tt.node)
		})
	}
}
