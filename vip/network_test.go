// SPDX-License-Identifier: Apache-2.0

package vip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

// network is this machine and a client on one link.
type network struct {
	client *netns.NS
	links  []Link
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	n := &network{client: netns.New(t)}
	n.client.Link(t, "here0", "there0", []string{"10.0.0.1/24", "fd00::1/64"}, []string{"10.0.0.2/24", "fd00::2/64"})
	// An interface's link-local address can be used after it was looked for on the link.
	testenv.Eventually(t, 2*time.Minute, "link-local addresses", func() error {
		for _, in := range []struct {
			netns.Doer
			dev string
		}{{netns.Own{}, "here0"}, {n.client, "there0"}} {
			if err := in.Do(func() error { return settled(in.dev) }); err != nil {
				return err
			}
		}
		return nil
	})
	links := testenv.Must(Links())(t)
	n.links = links
	return n
}

func settled(dev string) error {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_V6)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
			return nil
		}
	}
	return errors.New(dev + " has none yet")
}

func (n *network) place(t *testing.T, address netip.Addr) Interface {
	t.Helper()
	return testenv.Must(Find(n.links, address, ""))(t)
}

// announce runs Announce until the function it returns is called.
func announce(t *testing.T, a Announcement) (stop func()) {
	t.Helper()
	a.Logger = slog.New(slog.DiscardHandler)
	return testenv.Run(t, func(ctx context.Context) error { return Announce(ctx, a) })
}

func always(context.Context) (Moment, error) { return Now().After(time.Second), nil }

// flushNeighbours makes the client ask again.
func (n *network) flushNeighbours(t *testing.T) {
	t.Helper()
	err := n.client.Do(func() error {
		l, err := netlink.LinkByName("there0")
		if err != nil {
			return err
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			all, err := netlink.NeighList(l.Attrs().Index, family)
			if err != nil {
				return err
			}
			for i := range all {
				_ = netlink.NeighDel(&all[i]) // one that goes by itself meanwhile has gone, too
			}
		}
		return nil
	})
	testenv.NoError(t, err)
}

// TestLinuxClientReachesAnnouncedAddress: a Linux kernel finds an announced address, reaches a port of this machine at
// it, and finds nothing when no machine announces it, although the translation is there.
func TestLinuxClientReachesAnnouncedAddress(t *testing.T) {
	netns.Require(t)
	for _, tt := range []struct {
		address netip.Addr
		network string
	}{{v4, "tcp4"}, {v6, "tcp6"}} {
		t.Run(tt.network, func(t *testing.T) {
			n := newNetwork(t)
			p := n.place(t, tt.address)
			netns.Serve(t, netns.Own{}, "here", tt.network, ":6443")
			netns.Serve(t, netns.Own{}, "other port", tt.network, ":7000")
			redirects := []Redirect{{Address: tt.address, Port: 6443, To: p.Own}}
			testenv.NoError(t, SetRedirects(redirects))
			t.Cleanup(func() { testenv.Check(t, SetRedirects(nil)) })
			if there, err := RedirectsThere(redirects); !there || err != nil {
				t.Errorf("the translations: %v, %v", there, err)
			}
			at := net.JoinHostPort(tt.address.String(), "6443")
			if got, err := netns.Ask(n.client, at); err == nil {
				t.Fatalf("no machine announces the address, and %q answers", got)
			}
			var may atomic.Bool
			may.Store(true)
			stop := announce(t, Announcement{Address: tt.address, Interface: p, Confirm: func(ctx context.Context) (Moment, error) {
				if !may.Load() {
					return 0, errors.New("not this machine's")
				}
				until, err := always(ctx)
				return min(until, Now().After(50*time.Millisecond)), err
			}})
			var got string
			testenv.Eventually(t, 2*time.Minute, "the client reaches the address", func() (err error) {
				got, err = netns.Ask(n.client, at)
				return err
			})
			host := map[string]string{"tcp4": "10.0.0.2", "tcp6": "fd00::2"}[tt.network]
			testenv.Equal(t, got, "here "+host, "the answer, with the client's address, is")
			if got, err := netns.AskFor(netns.Own{}, at, 2*time.Minute); err != nil {
				t.Errorf("the machine itself: %q, %v", got, err)
			}
			if got, err := netns.Ask(n.client, net.JoinHostPort(tt.address.String(), "7000")); err == nil {
				t.Errorf("another port answers: %q", got)
			}
			may.Store(false)
			// The permission lasts for 50 ms; from then on the client must not learn anything.
			testenv.Eventually(t, 2*time.Minute, "the machine that may not answer is silent", func() error {
				n.flushNeighbours(t)
				if got, err := netns.Ask(n.client, at); err == nil {
					return errors.New("it answered: " + got)
				}
				return nil
			})
			stop()
		})
	}
}

// TestProbeFindsAddressInUse: an address that a machine of the network has, or announces, is in use; one that none
// has is not.
func TestProbeFindsAddressInUse(t *testing.T) {
	netns.Require(t)
	n := newNetwork(t)
	for _, text := range []string{"10.0.0.2", "fd00::2"} {
		address := netip.MustParseAddr(text)
		err := Probe(t.Context(), n.place(t, address), address)
		var used *InUseError
		testenv.False(t, !errors.As(err, &used) || used.Address != address || len(used.By) != 6, "%s: %v", text, err)
	}
	for _, address := range []netip.Addr{v4, v6} {
		testenv.Check(t, Probe(t.Context(), n.place(t, address), address))
	}
}

// TestAnnounceEndsWithItsInterface: when the interface goes, Announce says so.
func TestAnnounceEndsWithItsInterface(t *testing.T) {
	netns.Require(t)
	n := newNetwork(t)
	ended := make(chan error, 1) // one: the sender need not wait
	go func() {
		ended <- Announce(t.Context(), Announcement{Address: v4, Interface: n.place(t, v4), Confirm: always,
			Logger: slog.New(slog.DiscardHandler)})
	}()
	testenv.Eventually(t, 2*time.Minute, "the address is announced", func() error {
		return n.client.Do(func() error {
			l, err := netlink.LinkByName("there0")
			if err == nil {
				err = Probe(t.Context(), Interface{Name: "there0", index: l.Attrs().Index, hw: hw(l.Attrs().HardwareAddr)}, v4)
			}
			var used *InUseError
			if errors.As(err, &used) {
				return nil
			}
			return errors.Join(errors.New("no answer"), err)
		})
	})
	l, err := netlink.LinkByName("here0")
	if err == nil {
		err = netlink.LinkDel(l)
	}
	testenv.NoError(t, err)
	testenv.Fails(t, <-ended, "it ended without an error")
}

// TestRedirectsArePruned: what an earlier process left goes, in both families.
func TestRedirectsArePruned(t *testing.T) {
	netns.Require(t)
	four, six := Redirect{Address: v4, Port: 6443, To: peer4}, Redirect{Address: v6, Port: 6443, To: netip.MustParseAddr("fd00::1")}
	for _, want := range [][]Redirect{{four, six}, {six}, {four}, nil, nil} {
		testenv.NoError(t, SetRedirects(want))
		for _, r := range []Redirect{four, six} {
			there, err := nft.Exists(nft.Table{Family: familyOf(r.Address), Name: Table})
			wanted := false
			for _, w := range want {
				wanted = wanted || w == r
			}
			testenv.False(t, err != nil || there != wanted, "%v: the table for %s: %v, %v", want, r.Address, there, err)
		}
	}
}

// TestRoutersOfAllHops: the addresses through which routes lead, those of several hops too.
func TestRoutersOfAllHops(t *testing.T) {
	netns.Require(t)
	n := newNetwork(t)
	testenv.Check(t, n.client.Do(func() error {
		l, err := netlink.LinkByName("there0")
		if err != nil {
			return err
		}
		hop := func(ip string) *netlink.NexthopInfo {
			return &netlink.NexthopInfo{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(ip)}
		}
		_, far, err := net.ParseCIDR("198.51.100.0/24")
		if err != nil {
			return err
		}
		for _, r := range []netlink.Route{
			{LinkIndex: l.Attrs().Index, Gw: net.ParseIP("10.0.0.1")}, {LinkIndex: l.Attrs().Index, Gw: net.ParseIP("fd00::1")},
			{Dst: far, MultiPath: []*netlink.NexthopInfo{hop("10.0.0.8"), hop("10.0.0.9")}},
		} {
			if err := netlink.RouteAdd(&r); err != nil {
				return err
			}
		}
		got, err := Routers()
		slices.SortFunc(got, netip.Addr.Compare)
		if err == nil && fmt.Sprint(got) != "[10.0.0.1 10.0.0.8 10.0.0.9 fd00::1]" {
			err = fmt.Errorf("routers are %v", got)
		}
		return err
	}))
}
