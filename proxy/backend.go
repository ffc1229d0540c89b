// SPDX-License-Identifier: Apache-2.0

// Package proxy is the node's Service data plane: it makes the kernel send packets for Service addresses to endpoints.
//
// It owns the informers that the node's network parts share (NewInformers) and the kernel state of its back end: for
// nftables, upstream's tables `kube-proxy` of families ip and ip6. Back ends keep that state when they stop, so that a
// restart of the agent interrupts no Service. It never touches the pod network or other tables (package cni), and
// never writes to the API.
package proxy

import (
	"context"
	"time"
)

// Backend programs one kind of kernel load balancing.
type Backend interface {
	// Name is what status output calls the back end.
	Name() string
	// Run keeps the kernel in step with the API until ctx is done. It returns early only for an error that trying
	// again will not cure. Kernel state stays.
	Run(ctx context.Context) error
	// Health says how the last attempts to program the kernel went. It is safe at any time.
	Health() Health
}

// Health is a back end's state for people and for readiness checks.
type Health struct {
	// Synced says that the kernel has the rules of some complete view of the API.
	Synced bool
	// LastSync is when rules were last written, zero when never.
	LastSync time.Time
	// LastDuration is how long that took.
	LastDuration time.Duration
	// Err is why the last attempt failed, nil when it did not.
	Err error
}
