// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/coracle-k8s/coracle/internal/nft"
)

// backend programs one kind of kernel load balancing. Several goroutines deliver events, which are only recorded. One
// goroutine, the front's loop, calls prepare, sync and intact, which do the work.
type backend interface {
	// name returns the name in logs and status output.
	name() string

	// OnServiceUpdate receives a Service that was added (old is nil), changed or deleted (new is nil).
	OnServiceUpdate(old, new *corev1.Service)
	// OnEndpointSliceUpdate receives a slice that was added (old is nil) or changed.
	OnEndpointSliceUpdate(old, new *discoveryv1.EndpointSlice)
	OnEndpointSliceDelete(*discoveryv1.EndpointSlice)
	// OnTopologyChange receives this node's topology labels.
	OnTopologyChange(labels map[string]string)
	// OnServiceCIDRsChanged receives all Service CIDRs.
	OnServiceCIDRsChanged(cidrs []string)

	// prepare runs once, before the first sync.
	prepare() error
	// sync makes the kernel match the events: it writes the difference, or with full everything. It returns when that
	// is done. After an error the kernel may lack changes, and its existing rules stay in effect.
	sync(full bool) error
	// intact reports whether the result of sync still exists. It costs one or two requests to the kernel.
	intact() (bool, error)
}

// tabled is a back end with tables whose deletion the kernel reports.
type tabled interface{ ownTables() []nft.Table }

// candidate is a back end that New may choose. Its rules are removed by internal/nft.
type candidate struct {
	name string
	// open makes the back end, or returns why it cannot be used on this host. It changes nothing in the kernel.
	open func(context.Context, Options) (backend, error)
}

// Modes of Options.Mode.
const (
	ModeAuto     = "auto"
	ModeIPVS     = nft.ServicesByIPVS
	ModeNFTables = nft.ServicesByNFTables
)

// candidatesOf returns the candidates of a mode, in the order in which they are tried: docs/adr/0021.
func candidatesOf(mode string) ([]candidate, error) {
	switch mode {
	case "", ModeAuto:
		return []candidate{{ModeIPVS, openIPVS}, {ModeNFTables, openNFTables}}, nil
	case ModeNFTables:
		return []candidate{{ModeNFTables, openNFTables}}, nil
	case ModeIPVS:
		return []candidate{{ModeIPVS, openIPVS}}, nil
	}
	return nil, fmt.Errorf("proxy: there is no mode %q; there are %s, %s and %s", mode, ModeAuto, ModeIPVS, ModeNFTables)
}

// drainer is a back end that may have work to do although nothing changes: endpoints that drain.
type drainer interface{ HasDraining() bool }

// choose opens the first candidate that can be used, and returns why it was chosen.
func choose(ctx context.Context, o Options, from []candidate) (_ backend, why string, _ error) {
	var errs []error
	var unfit []string
	for _, c := range from {
		b, err := c.open(ctx, o)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", c.name, err))
			unfit = append(unfit, fmt.Sprintf("%s will not do here: %v", c.name, err))
		case len(unfit) > 0:
			return b, strings.Join(unfit, "; "), nil
		case len(from) == 1:
			return b, "--proxy-mode=" + c.name + " asks for it", nil
		default:
			return b, "auto takes it where the kernel has what it needs", nil
		}
	}
	return nil, "", fmt.Errorf("proxy: nothing here can serve Services: %w", errors.Join(errs...))
}
