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
	// kubeletPort is that of a Node that does not say.
	kubeletPort = 10250
	// attempts are connections that are tried side by side, so much later each: a packet that is lost decides nothing.
	// The kernel itself would wait a second before it sends another one.
	attempts     = 3
	attemptAfter = 150 * time.Millisecond
	// near is how long the machine of a node may take to answer of which a check can tell that it does not: one attempt
	// may fail, and another one still has its answer within CheckTimeout.
	near = CheckTimeout / 2
)

// Reach tries whether a machine answers at the port of a node's kubelet. That it refuses the connection will do: its
// kernel works. It is the node's machine only if that was found out before (ProvesIdentity): a node says itself which
// addresses it has.
func Reach(ctx context.Context, n *corev1.Node) bool {
	return try(ctx, n, connects)
}

// ProvesIdentity tries whether the node itself answers at the port of its kubelet: with a certificate of one of the
// authorities for the node's name. A router, or another machine, may answer there as well. A node whose machine is too
// far away for a check, so that one lost packet would have it found silent, does not show itself.
func ProvesIdentity(ctx context.Context, n *corev1.Node, authorities *x509.CertPool, now time.Time) bool {
	config := &tls.Config{RootCAs: authorities, ServerName: n.Name, MinVersion: tls.VersionTLS12, Time: func() time.Time { return now }}
	return try(ctx, n, func(ctx context.Context, at string) bool {
		return provesIdentity(ctx, at, config, new(net.Dialer).DialContext)
	})
}

func provesIdentity(ctx context.Context, at string, config *tls.Config, dial func(ctx context.Context, network, address string) (net.Conn,
	error)) bool {
	accepting, cancel := context.WithTimeout(ctx, near)
	defer cancel()
	raw, err := dial(accepting, "tcp", at)
	if err != nil {
		return false
	}
	c := tls.Client(raw, config)
	defer func() { _ = c.Close() }() // nothing was to be said
	return c.HandshakeContext(ctx) == nil
}

// try asks at all of a node's addresses, several times.
func try(ctx context.Context, n *corev1.Node, answer func(ctx context.Context, at string) bool) bool {
	addresses := tunnels.Addresses(n)
	if len(addresses) == 0 {
		return false
	}
	port := int(n.Status.DaemonEndpoints.KubeletEndpoint.Port)
	port = cmp.Or(port, kubeletPort)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // the other attempts
	answers := make(chan bool, attempts*len(addresses))
	for i := range attempts {
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
		_ = c.Close() // that it was accepted is all there is to know
		return true
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
