// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// settleTime is how long to wait for more events of the kernel after the first one: a restart of a network changes
	// much at once.
	settleTime = 500 * time.Millisecond
	// listenAgain is the wait before the kernel's events are subscribed to again, after some were lost. Meanwhile the
	// periodic check finds changes.
	listenAgain = 2 * time.Second
)

// followKernel sends when an event of the kernel shows a possible change of the pod network, or of what it depends on.
// It only listens: checks find out what is wrong.
func (pn *podNetwork) followKernel(ctx context.Context, changes timers.Signal) {
	for ctx.Err() == nil {
		if err := pn.listen(ctx, changes); err != nil && ctx.Err() == nil {
			pn.log.V(2).Info("The kernel's news of the network ended; listening again", "err", err)
		}
		timers.Sleep(ctx, listenAgain)
	}
}

// listen returns when one of the subscriptions ends, and when ctx is done.
func (pn *podNetwork) listen(ctx context.Context, changes timers.Signal) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	news, err := subscribe(ctx.Done())
	defer news.drain()
	defer cancel()
	if err != nil {
		return err
	}
	var due <-chan time.Time
	for {
		var relevant, ok bool
		select {
		case <-ctx.Done():
			return nil
		case <-due:
			due = nil
			changes.Send()
			continue
		case u, open := <-news.links:
			relevant, ok = open && relevantLink(u), open
		case u, open := <-news.addrs:
			relevant, ok = open && !u.LinkAddress.IP.IsLinkLocalUnicast(), open
		case u, open := <-news.routes:
			relevant, ok = open && u.Type == unix.RTM_DELROUTE && u.Protocol == routeProtocol, open
		case u, open := <-news.neighbours:
			relevant, ok = open && relevantNeighbour(u), open
		}
		if !ok {
			return fmt.Errorf("the kernel's news of the network ended")
		}
		if relevant && due == nil {
			due = time.After(settleTime)
		}
	}
}

// kernelEvents has the subscriptions to the kernel's events. The channels are unbuffered: the sockets are the buffers.
type kernelEvents struct {
	links      chan netlink.LinkUpdate
	addrs      chan netlink.AddrUpdate
	routes     chan netlink.RouteUpdate
	neighbours chan netlink.NeighUpdate
	drainFuncs []func() // of the subscriptions that have begun
}

// subscribe begins all subscriptions. Also after an error, the begun ones have to be drained once done is closed.
func subscribe(done <-chan struct{}) (*kernelEvents, error) {
	n := &kernelEvents{
		links: make(chan netlink.LinkUpdate), addrs: make(chan netlink.AddrUpdate),
		routes: make(chan netlink.RouteUpdate), neighbours: make(chan netlink.NeighUpdate),
	}
	for _, s := range []struct {
		begin func() error
		drain func()
	}{
		{func() error { return netlink.LinkSubscribe(n.links, done) }, func() { drainChannel(n.links) }},
		{func() error { return netlink.AddrSubscribe(n.addrs, done) }, func() { drainChannel(n.addrs) }},
		{func() error { return netlink.RouteSubscribe(n.routes, done) }, func() { drainChannel(n.routes) }},
		{func() error { return netlink.NeighSubscribe(n.neighbours, done) }, func() { drainChannel(n.neighbours) }},
	} {
		if err := s.begin(); err != nil {
			return n, fmt.Errorf("following the kernel's network: %w", err)
		}
		n.drainFuncs = append(n.drainFuncs, s.drain)
	}
	return n, nil
}

// drain waits until netlink's goroutines have ended.
func (n *kernelEvents) drain() {
	for _, d := range n.drainFuncs {
		d()
	}
}

func drainChannel[T any](c <-chan T) {
	for range c { // netlink's goroutine closes the channel at its end
	}
}

// relevantNeighbour reports whether an entry of ours may have been removed. The kernel first reports a neighbour as
// failed, also when another program removes it.
func relevantNeighbour(u netlink.NeighUpdate) bool {
	if u.Type != unix.RTM_DELNEIGH && u.State != netlink.NUD_FAILED {
		return false
	}
	l, err := netlink.LinkByIndex(u.LinkIndex)
	return err == nil && ownDevice(l.Attrs().Name) // the entries of a removed device were removed with it
}

// relevantLink reports whether a link's change can matter. It ignores pods' devices, which we add and remove ourselves,
// and statistics.
func relevantLink(u netlink.LinkUpdate) bool {
	a := u.Attrs()
	if a == nil {
		return false
	}
	if u.Header.Type == unix.RTM_DELLINK {
		return true
	}
	return a.Name == Bridge || !ownDevice(a.Name) || a.Flags&net.FlagUp == 0
}
