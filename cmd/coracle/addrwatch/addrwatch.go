// SPDX-License-Identifier: Apache-2.0

// Package addrwatch notices that a machine has lost an address by which it was known. That happens when its DHCP lease
// was not renewed, or when the machine was moved to another network.
//
// It only observes: it neither changes an address nor decides what follows.
//
// Its goroutines: one that reads the kernel's notifications and ends with its context.
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
	// goneFor is how long an address has to be gone. A DHCP client, or a link that goes down and up, may restore it
	// before.
	goneFor = 3 * time.Second
	// resubscribePause is the pause before the subscription to the kernel's events is renewed, after some of them were
	// lost.
	resubscribePause = time.Second
	// eventTimeout is how long to wait for an event while an address is gone or could not be checked. The kernel
	// reports addresses only, and a new address may be unusable until its link has a route.
	eventTimeout = 10 * time.Second
)

// Options are the options of Changed. All are required.
type Options struct {
	// Have are the addresses by which the machine is known.
	Have []netip.Addr
	// Owns says whether the machine has an address on any interface.
	Owns func(netip.Addr) (bool, error)
	// Find returns the addresses by which the machine may be known in place of the lost ones.
	Find func() ([]netip.Addr, error)
	// Gone is called with the lost addresses while there are no others in their place. It is called with nil when they
	// are back.
	Gone func([]netip.Addr)
	// Failed is called with the error when the addresses cannot be read, which is tried again. The same error is not
	// reported twice in a row.
	Failed func(error)

	// events replaces the kernel's events in tests.
	events func(ctx context.Context) (<-chan struct{}, error)
}

// Changed waits until an address is gone and the machine has others instead, and returns these. It returns none when
// ctx is done. It does not replace an address that is merely no longer the best one: a machine with two links does not
// change its address each time that one of them fails.
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
				overdue = time.After(eventTimeout)
			}
			select {
			case <-ctx.Done():
			case _, open = <-events:
			case <-overdue:
			}
		}
		wait := resubscribePause
		if err != nil {
			wait = eventTimeout
		}
		timers.Sleep(ctx, wait)
	}
	return nil
}

// poll returns the addresses that replace a lost one, or else the lost addresses.
func (o *Options) poll(ctx context.Context) (next, lost []netip.Addr, err error) {
	if lost, err = o.missingAddresses(); err != nil || lost == nil {
		return nil, lost, err
	}
	if !timers.Sleep(ctx, goneFor) {
		return nil, nil, ctx.Err()
	}
	if lost, err = o.missingAddresses(); err != nil || lost == nil {
		return nil, lost, err
	}
	found, err := o.Find()
	if err != nil {
		return nil, nil, err
	}
	for _, ip := range lost { // each lost address needs a new one of its family, or nothing is changed
		if !slices.ContainsFunc(found, func(f netip.Addr) bool { return f.Is4() == ip.Is4() }) {
			return nil, lost, nil
		}
	}
	return found, nil, nil
}

func (o *Options) missingAddresses() ([]netip.Addr, error) {
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

// kernelEvents returns a channel that receives when an address was added to or removed from the machine. The channel is
// closed when the subscription ends, also when more events came than could be read. It ignores link-local addresses, of
// which each pod adds one, and tentative ones.
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
