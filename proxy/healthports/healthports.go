// SPDX-License-Identifier: Apache-2.0

// Package healthports bounds the connections of Services' health check node ports. Upstream's servers for these open
// the ports, and have neither a bound nor a time limit. Any machine that reaches a node may connect to them.
package healthports

import (
	"context"
	"fmt"
	"net"
	"strings"

	"k8s.io/kubernetes/pkg/proxy/healthcheck"

	"github.com/coracle-k8s/coracle/internal/connlimit"
	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

const (
	// maxOpen is how many connections all health check node ports of an address family may have, and maxPerSource how
	// many of these a source may have. A load balancer keeps one for each Service at most.
	maxOpen, maxPerSource = 512, 128
)

// listenerField is the path of the field with which upstream's server opens its ports. Upstream has no function that
// sets it.
var listenerField = []string{"listener"}

// Bound has a server open its ports with a bound. After an error the server is unchanged.
func Bound(s healthcheck.ServiceHealthServer) error {
	table := &connlimit.Table{Max: maxOpen, MaxPerSource: maxPerSource}
	if err := kubecompat.SetField(s, listenerField, bounded{table}); err != nil {
		return fmt.Errorf("bounding the connections of health check node ports: %w", err)
	}
	return nil
}

// bounded is upstream's interface for opening ports.
type bounded struct{ table *connlimit.Table }

// Listen opens a port. Upstream gives one address.
func (b bounded) Listen(ctx context.Context, network string, addresses ...string) (net.Listener, error) {
	if len(addresses) != 1 {
		return nil, fmt.Errorf("opening a health check node port: one address is needed, not %q", strings.Join(addresses, " "))
	}
	p, err := connlimit.Listen(ctx, "service-health", network, addresses[0], b.table)
	if err != nil {
		return nil, err
	}
	return p.Bounded(nil), nil
}
