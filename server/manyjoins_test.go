// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// joinAs asks a server for a node's credentials.
func joinAs(t *testing.T, s *Server, name, ip string, now time.Time) (*protocol.Response, error) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	return protocol.Send(t.Context(), protocol.Call{
		Address: net.JoinHostPort("127.0.0.1", s.openPort()), Token: s.tokens.Now().Agent,
		Request: protocol.Request{Role: token.RoleAgent, Time: now, Node: protocol.Node{
			Name: name, Addresses: []netip.Addr{netip.MustParseAddr(ip)}, Password: name + strings.Repeat("x", 16),
			KubeletRequest: request, ServingRequest: request, NetworkRequest: request,
		}},
	})
}

func code(err error) protocol.Code {
	var r *protocol.Refusal
	switch {
	case err == nil:
		return ""
	case errors.As(err, &r):
		return r.Code
	}
	return protocol.Code(err.Error())
}

// atOnce calls f for 0 to n-1 at the same time, and returns when all have ended.
func atOnce(n int, f func(i int)) {
	var running sync.WaitGroup
	for i := range n {
		running.Go(func() { f(i) })
	}
	running.Wait()
}

// testJoinsAtOnce: five machines that join at the same moment are all let in; of five with
// one address, one is.
func testJoinsAtOnce(t *testing.T, s *Server, c *clients, now time.Time) {
	const n = 5
	answers, errs := make([]*protocol.Response, n), make([]error, n)
	atOnce(n, func(i int) {
		answers[i], errs[i] = joinAs(t, s, fmt.Sprintf("five-%d", i), fmt.Sprintf("192.0.2.%d", 100+i), now)
	})
	for i := range n {
		if errs[i] != nil || len(answers[i].Kubelet) == 0 || !bytes.Contains(answers[i].ServerCA, []byte("CERTIFICATE")) {
			t.Errorf("machine %d: %v", i, errs[i])
		}
		testenv.Check(t, testenv.Err(c.kube.CoreV1().Secrets("kube-system").Get(t.Context(), fmt.Sprintf("five-%d%s", i, roster.RegistrationSuffix), metav1.GetOptions{})))
	}
	got := make([]error, n)
	atOnce(n, func(i int) { _, got[i] = joinAs(t, s, fmt.Sprintf("same-%d", i), "192.0.2.200", now) })
	in := 0
	for _, err := range got {
		switch code(err) {
		case "":
			in++
		case protocol.CodeBusy:
		default:
			t.Errorf("of machines with one address: %v", err)
		}
	}
	testenv.True(t, in == 1, "%d machines with one address were let in: %v", in, got)
	// Their Secrets are all that there is of them.
	secrets := testenv.Must(
		c.kube.CoreV1().Secrets("kube-system").List(t.Context(), metav1.ListOptions{LabelSelector: roster.ManagedBy + "=coracle"}))(t)
	for _, secret := range secrets.Items {
		if secret.Type == corev1.SecretTypeOpaque && strings.HasSuffix(secret.Name, roster.RegistrationSuffix) {
			testenv.Check(t, c.kube.CoreV1().Secrets("kube-system").Delete(t.Context(), secret.Name, metav1.DeleteOptions{}))
		}
	}
}
