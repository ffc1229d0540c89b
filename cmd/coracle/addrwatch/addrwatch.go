// SPDX-License-Identifier: Apache-2.0

// Package addrwatch notices that a machine has lost an address that it was known by, as one does whose lease of DHCP
// was not renewed, or that was carried to another network.
//
// It only observes: it neither changes an address nor decides what follows.
package addrwatch

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// settle is how long an address has to be gone: a client of DHCP, or a link that goes down and up, may give it
	// back.
	settle = 3 * time.Second
	// again is how long to wait before the kernel is asked again for its events, after it lost some of them.
	again = time.Second
	// patience is how long to wait for news while an address is gone, or could not be looked for. The kernel tells of
	// addresses, and a new one may be of no use before its link has a route.
	patience = 10 * time.Second
)

// Options are all required.
type Options struct {
	// Have are the addresses by which the machine is known.
	Have []netip.Addr
	// Owns says whether the machine has an address, on whichever interface.
	Owns func(netip.Addr) (bool, error)
	// Find returns those by which the machine may be known in place of the ones that are gone.
	Find func() ([]netip.Addr, error)
	// Gone is called with the addresses that are lost while there is nothing in their place; nil when they are back.
	Gone func([]netip.Addr)
	// Failed is called with why the addresses cannot be read; that is tried again. It gets the same reason once in a
	// row.
	Failed func(error)

	// events, in tests, stands for the kernel's news.
	events func(ctx context.Context) (<-chan struct{}, error)
}

// Changed waits until an address is gone and the machine has others instead, which it returns; none when ctx is done.
// An address that is merely no longer the best one is kept: a machine with two links does not change its address each
// time that one of them fails.
func Changed(ctx context.Context, o Options) []netip.Addr {
	if o.events == nil {
		o.events = kernelEvents
	}
	reported, failed := false, ""
	fails := func(err error) {
		if err == nil {
			failed = ""
		} else if err.Error() != failed && ctx.Err() == nil {
			failed = err.Error()
			o.Failed(err)
		}
	}
	for ctx.Err() == nil {
		events, err := o.events(ctx)
		fails(err)
		for open := err == nil; open && ctx.Err() == nil; {
			next, lost, err := o.poll(ctx)
			fails(err)
			if next != nil {
				return next
			}
			if err == nil && reported != (lost != nil) {
				reported = lost != nil
				o.Gone(lost)
			}
			var overdue <-chan time.Time
			if reported || err != nil {
				overdue = time.After(patience)
			}
			select {
			case <-ctx.Done():
			case _, open = <-events:
			case <-overdue:
			}
		}
		wait := again
		if err != nil {
			wait = patience
		}
		timers.Sleep(ctx, wait)
	}
	return nil
}

// poll returns the addresses that the machine has in place of one that is gone, or else those that are gone.
func (o *Options) poll(ctx context.Context) (next, lost []netip.Addr, err error) {
	if lost, err = o.missing(); err != nil || lost == nil {
		return nil, lost, err
	}
	if !timers.Sleep(ctx, settle) {
		return nil, nil, ctx.Err()
	}
	if lost, err = o.missing(); err != nil || lost == nil {
		return nil, lost, err
	}
	found, err := o.Find()
	if err != nil {
		return nil, nil, err
	}
	for _, ip := range lost { // each needs one of its family: half an address is as good as none
		if !slices.ContainsFunc(found, func(f netip.Addr) bool { return f.Is4() == ip.Is4() }) {
			return nil, lost, nil
		}
	}
	return found, nil, nil
}

func (o *Options) missing() ([]netip.Addr, error) {
	var out []netip.Addr
	for _, ip := range o.Have {
		ok, err := o.Owns(ip)
		if err != nil {
			return nil, fmt.Errorf("looking for this machine's addresses: %w", err)
		}
		if !ok {
			out = append(out, ip)
		}
	}
	return out, nil
}

// kernelEvents sends when a machine's address has come or gone, and closes the channel when the kernel's news end, or
// were more than could be read. Addresses of one link alone, which each pod brings, are none.
func kernelEvents(ctx context.Context) (<-chan struct{}, error) {
	updates, done := make(chan netlink.AddrUpdate), make(chan struct{}) // unbuffered: netlink's socket is the buffer
	if err := netlink.AddrSubscribe(updates, done); err != nil {
		return nil, fmt.Errorf("following this machine's addresses: %w", err)
	}
	events := timers.NewSignal()
	go func() {
		defer close(events)
		defer func() {
			for range updates { // until netlink's goroutine has ended
			}
		}()
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case u, ok := <-updates:
				if !ok {
					return
				}
				if ip, _ := netip.AddrFromSlice(u.LinkAddress.IP); !ip.IsGlobalUnicast() || u.Flags&unix.IFA_F_TENTATIVE != 0 {
					continue
				}
				events.Send()
			}
		}
	}()
	return events, nil
}
