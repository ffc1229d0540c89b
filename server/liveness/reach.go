// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strconv"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/server/tunnels"
)

const (
	// kubeletPort is the kubelet's port if the Node names none.
	kubeletPort = 10250
	// maxAttempts is the number of connections that are tried, each attemptAfter later than the one before: a single
	// lost packet decides nothing. The kernel itself would wait a second before it sends another one.
	maxAttempts  = 3
	attemptAfter = 150 * time.Millisecond
	// nearResponse is the longest response time with which a check can still distinguish a live machine from a dead
	// one: one attempt may fail, and another one still gets its answer within CheckTimeout.
	nearResponse = CheckTimeout / 2
)

// Reach says whether a machine answers at the port of a node's kubelet. A refused connection counts: the kernel works.
// It is the node's machine only if ProvesIdentity has shown that before, since a node reports its own addresses.
func Reach(ctx context.Context, n *corev1.Node) bool {
	return tryAddresses(ctx, n, connects)
}

// ProvesIdentity says whether the node itself answers at the port of its kubelet, with a certificate of one of the
// authorities for the node's name. A router, or another machine, may answer there as well. It returns false for a
// machine with a response time above near, which a check would find silent after one lost packet.
func ProvesIdentity(ctx context.Context, n *corev1.Node, authorities *x509.CertPool, now time.Time) bool {
	config := &tls.Config{RootCAs: authorities, ServerName: n.Name, MinVersion: tls.VersionTLS12, Time: func() time.Time { return now }}
	return tryAddresses(ctx, n, func(ctx context.Context, at string) bool {
		return provesIdentity(ctx, at, config, new(net.Dialer).DialContext)
	})
}

func provesIdentity(ctx context.Context, at string, config *tls.Config, dial func(ctx context.Context, network, address string) (net.Conn,
	error)) bool {
	accepting, cancel := context.WithTimeout(ctx, nearResponse)
	defer cancel()
	raw, err := dial(accepting, "tcp", at)
	if err != nil {
		return false
	}
	c := tls.Client(raw, config)
	defer func() { _ = c.Close() }() // there is nothing to send
	return c.HandshakeContext(ctx) == nil
}

// tryAddresses calls answer for all of a node's addresses, attempts times each. It says whether one call returned true.
func tryAddresses(ctx context.Context, n *corev1.Node, answer func(ctx context.Context, at string) bool) bool {
	addresses := tunnels.Addresses(n)
	if len(addresses) == 0 {
		return false
	}
	port := int(n.Status.DaemonEndpoints.KubeletEndpoint.Port)
	port = cmp.Or(port, kubeletPort)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the other attempts
	answers := make(chan bool, maxAttempts*len(addresses))
	for i := range maxAttempts {
		for _, a := range addresses {
			go func() {
				select {
				case <-ctx.Done():
					answers <- false
				case <-time.After(time.Duration(i) * attemptAfter):
					answers <- answer(ctx, net.JoinHostPort(a.String(), strconv.Itoa(port)))
				}
			}()
		}
	}
	ok := false
	for range cap(answers) { // each ends with ctx
		if <-answers {
			ok = true
			cancel()
		}
	}
	return ok
}

func connects(ctx context.Context, at string) bool {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", at)
	if err == nil {
		_ = c.Close() // only the acceptance matters
		return true
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
