// SPDX-License-Identifier: Apache-2.0

package virtualip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/vip"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// All sleeps of this file are of a synctest bubble: they take no time, and end when every goroutine waits.

// oneTerm is a store that confirms one term.
type oneTerm struct {
	err          error
	moved        []uint64 // to which members
	unresponsive uint64   // the one that does not answer
}

func (s *oneTerm) MoveLeader(_ context.Context, id uint64) error {
	if id == s.unresponsive {
		return errors.New("it does not answer")
	}
	s.moved = append(s.moved, id)
	return nil
}

func (s *oneTerm) ConfirmTerm(context.Context) error { return s.err }
func (s *oneTerm) Members() []raftstore.Member {
	return []raftstore.Member{{ID: 1, Self: true, Voter: true}, {ID: 2, Address: "10.0.0.4:6443", Voter: true}, {ID: 3, Name: "other", Address: "10.0.0.3:6443", Leader: true, Voter: true},
		{ID: 4, Address: "10.0.0.5:6443"}}
}

// ether is the only interface of a machine.
func ether(network string) []vip.Link {
	return []vip.Link{{Interface: net.Interface{Index: 2, Name: "eth0", Flags: net.FlagUp, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}},
		Addresses: []netip.Prefix{netip.MustParsePrefix(network)}}}
}

// held records what a holder does.
type held struct {
	mu        sync.Mutex
	announced int // at this moment
	events    []string
	began     time.Time
	fail      error
	links     []vip.Link
	redirects []vip.Redirect
}

func (h *held) announce(ctx context.Context, a vip.Announcement) error {
	h.mu.Lock()
	h.announced++
	h.events = append(h.events, fmt.Sprintf("%s on %s after %v", a.Address, a.Interface.Name, time.Since(h.began)))
	fail := h.fail
	h.mu.Unlock()
	defer func() { h.mu.Lock(); h.announced--; h.mu.Unlock() }()
	if fail != nil {
		return fail
	}
	<-ctx.Done()
	return nil
}

// TestAddressIsAnnouncedInOneTermOnly: an address is announced from 0.55 s after the beginning of a term on, until its
// end, and never in two terms at a time; translations are there all the while.
func TestAddressIsAnnouncedInOneTermOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		address := netip.MustParseAddr("10.0.0.100")
		board := status.NewBoard(time.Now)
		rec := &held{links: ether("10.0.0.2/24")}
		v := &Addresses{addresses: []netip.Addr{address}, fromCluster: true, changed: make(chan struct{}, 1), o: Options{
			Logger: slog.New(slog.DiscardHandler), Port: "6443", Machines: func() []gossip.Info { return nil }, Board: board, Redirect: func(r []vip.Redirect) error {
				rec.redirects = r
				return nil
			}}}
		h := newHolder(v, &oneTerm{})
		h.announce, h.links = rec.announce, func() ([]vip.Link, error) { return rec.links, nil }
		leadership := make(chan raftstore.Leadership, 1)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); h.run(ctx, leadership) }()
		check := func(what string, announced int, state status.State, events ...string) {
			t.Helper()
			synctest.Wait()
			rec.mu.Lock()
			defer rec.mu.Unlock()
			if rec.announced != announced || !slices.Equal(rec.events, events) {
				t.Errorf("%s: %d announced, %q; want %d, %q", what, rec.announced, rec.events, announced, events)
			}
			rec.events = nil
			i := slices.IndexFunc(board.Components(), func(c status.Component) bool { return c.Name == "virtual address" })
			if i < 0 || board.Components()[i].State != state {
				t.Errorf("%s: the status is %+v, want %s", what, board.Components(), state)
			}
		}
		now := func(l raftstore.Leadership) {
			rec.began = time.Now()
			leadership <- l
		}
		check("at first", 0, status.Waiting)
		if want := []vip.Redirect{{Address: address, Port: 6443, To: netip.MustParseAddr("10.0.0.2")}}; !slices.Equal(rec.redirects, want) {
			t.Errorf("translations %v, want %v", rec.redirects, want)
		}
		now(raftstore.Leadership{Leader: true, Term: 2})
		time.Sleep(leaderWait - 1) // fake time
		check("before the wait is over", 0, status.Running)
		time.Sleep(time.Nanosecond)
		check("when it is over", 1, status.Running, "10.0.0.100 on eth0 after 550ms")
		now(raftstore.Leadership{Leader: true, Term: 4}) // nothing was heard of the end of term 2
		check("the next term", 0, status.Running)
		time.Sleep(leaderWait) // fake time
		check("the next term, after the wait", 1, status.Running, "10.0.0.100 on eth0 after 550ms")
		now(raftstore.Leadership{Term: 5})
		check("another server's term", 0, status.Waiting)

		rec.fail = errors.New("the interface is gone")
		now(raftstore.Leadership{Leader: true, Term: 6})
		time.Sleep(leaderWait) // fake time
		check("an interface that goes", 0, status.Running, "10.0.0.100 on eth0 after 550ms")
		rec.fail = nil
		time.Sleep(time.Second)
		check("and comes back", 1, status.Running, "10.0.0.100 on eth0 after 1.55s")
		rec.links = ether("192.0.2.2/24")
		v.changed.Send()
		check("a machine that has left the network", 0, status.Degraded)
		testenv.True(t, len(rec.redirects) == 0, "translations to an address that the machine has no more: %v", rec.redirects)
		rec.links = ether("10.0.0.7/24")
		rec.began = time.Now()
		v.changed.Send()
		check("and is back with another address", 1, status.Running, "10.0.0.100 on eth0 after 0s")
		h.noteConflict(address, net.HardwareAddr{2, 0, 0, 0, 0, 9})
		check("another machine's claim", 1, status.Degraded)

		v.mu.Lock()
		v.addresses = nil
		v.mu.Unlock()
		v.changed.Send()
		check("the cluster gives the address up", 0, status.Disabled)
		cancel()
		<-done
		testenv.True(t, rec.redirects == nil, "left behind: %v", rec.redirects)
	})
}

// newTestHolder is one with an address, a machine on a network and a store of the test's.
func newTestHolder(network string, rec *held, store Store) *holder {
	v := &Addresses{addresses: []netip.Addr{netip.MustParseAddr("10.0.0.100")}, fromCluster: true, changed: make(chan struct{}, 1), o: Options{
		Logger: slog.New(slog.DiscardHandler), Port: "6443", Machines: func() []gossip.Info { return nil }, Redirect: func([]vip.Redirect) error { return nil }}}
	h := newHolder(v, store)
	h.announce, h.links, h.shuffle = rec.announce, func() ([]vip.Link, error) { return ether(network), nil }, func(int, func(int, int)) {}
	return h
}

// runHolder runs it until the function that it returns is called.
func runHolder(t *testing.T, h *holder) (lead func(bool), stop func()) {
	leadership := make(chan raftstore.Leadership, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); h.run(ctx, leadership) }()
	term := uint64(1)
	return func(is bool) { term++; leadership <- raftstore.Leadership{Leader: is, Term: term} }, func() { cancel(); <-done }
}

// TestNewAddressIsProbed: an address that is new to the cluster is announced when no machine answered for it, and not
// before.
func TestNewAddressIsProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := &held{began: time.Now()}
		h := newTestHolder("10.0.0.2/24", rec, &oneTerm{})
		h.v.unproven = map[netip.Addr]bool{h.v.addresses[0]: true}
		var mu sync.Mutex
		probes, used := 0, true
		h.probe = func(_ context.Context, p vip.Interface, a netip.Addr) error {
			mu.Lock()
			defer mu.Unlock()
			probes++
			if used {
				return &vip.InUseError{Address: a, By: net.HardwareAddr{2, 0, 0, 0, 0, 9}}
			}
			return nil
		}
		announced := func(want int) {
			t.Helper()
			synctest.Wait()
			rec.mu.Lock()
			defer rec.mu.Unlock()
			testenv.True(t, rec.announced == want, "%d announced, want %d, at %v", rec.announced, want, time.Since(rec.began))
		}
		lead, stop := runHolder(t, h)
		defer stop()
		lead(true)
		time.Sleep(time.Minute)
		announced(0)
		mu.Lock()
		testenv.False(t, probes < 4 || probes > 6, "it was looked for %d times in a minute", probes)
		used = false
		mu.Unlock()
		time.Sleep(probeAgain) // fake time
		announced(1)
		mu.Lock()
		probes = 0
		mu.Unlock()
		lead(false)
		announced(0)
		lead(true)
		time.Sleep(leaderWait) // fake time
		announced(1)
		testenv.True(t, probes == 0, "it was looked for again")
	})
}

// TestLeaderWithoutALink: a leader that can announce none of the addresses has another server lead, once, and then
// leads for a while if it has to.
func TestLeaderWithoutALink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &oneTerm{unresponsive: 2}
		h := newTestHolder("192.0.2.2/24", &held{}, store)
		lead, stop := runHolder(t, h)
		lead(true)
		moved := func(want ...uint64) {
			t.Helper()
			synctest.Wait()
			testenv.True(t, slices.Equal(store.moved, want), "it handed over to %v, want %v", store.moved, want)
		}
		time.Sleep(transferAfter / 2) // fake time
		moved()
		time.Sleep(2 * transferAfter) // fake time
		moved(3)
		lead(false)
		synctest.Wait()
		lead(true)
		time.Sleep(transferAgain / 2) // fake time
		moved(3)
		time.Sleep(transferAgain) // fake time
		moved(3, 3)
		stop()
	})
}
