// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/server/tunnels"
)

const (
	// kubeletPort is that of a Node that does not say.
	kubeletPort = 10250
	// attempts are connections that are tried side by side, so much later each: a packet that is lost decides nothing. The
	// kernel itself would wait a second before it sends another one.
	attempts     = 3
	attemptAfter = 150 * time.Millisecond
)

// Reach tries whether a node's machine answers at the port of its kubelet. That it refuses the connection will do: its kernel works.
func Reach(ctx context.Context, n *corev1.Node) bool {
	addresses := tunnels.Addresses(n)
	if len(addresses) == 0 {
		return false
	}
	port := int(n.Status.DaemonEndpoints.KubeletEndpoint.Port)
	if port == 0 {
		port = kubeletPort
	}
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
					answers <- connects(ctx, a, port)
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

func connects(ctx context.Context, a netip.Addr, port int) bool {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(a.String(), strconv.Itoa(port)))
	if err == nil {
		_ = c.Close() // that it was accepted is all there is to know
		return true
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
