// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/version"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// spread is when all members have heard of a change: usually within a second, and else with the next full exchange.
const spread = 3 * pushPullEvery

// group is some members on one network, in a bubble of fake time: no sleep of this file takes any.
type group struct {
	t       *testing.T
	net     *network
	keys    clusterconfig.GossipKeys
	members []*Member
	known   []string // whom each member knew before it ran
	stops   []func()
}

func newGroup(t *testing.T) *group {
	keys := clusterconfig.NewGossipKeys()
	g := &group{t: t, net: newNetwork(), keys: keys}
	t.Cleanup(g.stop) // in the bubble, also after a failure
	return g
}

func at(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i + 1)}), 6443)
}

func name(i int) string { return fmt.Sprintf("m%d", i) }

// add starts a member; the first is a server, and the others get the address of the one before.
func (g *group) add(change ...func(*Options)) *Member {
	g.t.Helper()
	i := len(g.members)
	h := g.net.host(at(i))
	o := Options{
		Name: name(i), Address: at(i), Packets: h, Streams: h, Keys: g.keys, Logger: slog.New(slog.DiscardHandler),
		Meta: Meta{Role: RoleAgent, Version: "v1", Addresses: []netip.Addr{at(i).Addr()}},
	}
	if i == 0 {
		o.Meta.Role, o.Meta.API = RoleServer, []netip.AddrPort{at(0)}
	} else {
		o.Ask = func() []netip.AddrPort { return []netip.AddrPort{at(i - 1)} }
	}
	for _, f := range change {
		f(&o)
	}
	if o.Address != at(i) { // it is elsewhere
		h := g.net.host(o.Address)
		o.Packets, o.Streams = h, h
	}
	m := testenv.Must(New(o))(g.t)
	g.known = append(g.known, views(m))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	g.members = append(g.members, m)
	g.stops = append(g.stops, sync.OnceFunc(func() {
		cancel()
		testenv.Check(g.t, <-done, "%s", o.Name)
	}))
	return m
}

// crash takes a member off the network and stops it there, so that it sends nothing.
func (g *group) crash(i int) {
	g.net.mu.Lock()
	own := g.members[i].o.Address
	delete(g.net.hosts, own)
	cut := g.net.cut
	g.net.cut = func(from, to netip.AddrPort) bool { return from == own || cut != nil && cut(from, to) }
	g.net.mu.Unlock()
	g.stops[i]()
	g.net.mu.Lock()
	g.net.cut = cut
	g.net.mu.Unlock()
}

func (g *group) stop() {
	for _, f := range g.stops {
		f()
	}
	time.Sleep(time.Minute) // memberlist's goroutines end after their last wait
}

// views writes whom a member knows: name and state.
func views(m *Member) string {
	var out []string
	for _, i := range m.Members() {
		out = append(out, i.Name+" "+string(i.State))
	}
	return strings.Join(out, ", ")
}

// within waits until all members that live see the same.
func (g *group) within(d time.Duration, want string, of ...*Member) {
	g.t.Helper()
	end := time.Now().Add(d)
	for {
		bad := ""
		for _, m := range of {
			if got := views(m); got != want {
				bad = fmt.Sprintf("%s sees: %s\nwant: %s", m.o.Name, got, want)
			}
		}
		if bad == "" {
			return
		}
		testenv.Require(g.t, !time.Now().After(end), "after %v %s", d, bad)
		time.Sleep(100 * time.Millisecond)
	}
}

func TestMembersFindOneAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t)
		for range 5 {
			g.add()
		}
		g.within(spread, "m0 alive, m1 alive, m2 alive, m3 alive, m4 alive", g.members...)
		first := g.members[4].Members()[0]
		if first.Role != RoleServer || first.API[0] != at(0) || first.Version != "v1" || first.Protocol != uint64(version.Protocol()) || first.KeyGeneration != 1 || first.Self {
			t.Errorf("the last one knows the first as %+v", first)
		}
		subnet := netip.MustParsePrefix("10.42.3.0/24")
		g.members[3].Update(func(m *Meta) { m.PodSubnets = []netip.Prefix{subnet} })
		time.Sleep(spread)
		for _, m := range g.members {
			if got := m.Members()[3].PodSubnets; len(got) != 1 || got[0] != subnet {
				t.Errorf("%s knows the pod subnets %v", m.o.Name, got)
			}
		}
	})
}

// TestMembersLeaveAndReturn: one that stops says so; one that vanishes is nominated, and is a member again when it is
// back.
func TestMembersLeaveAndReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t)
		suspects := make(chan string, 8)
		g.add(func(o *Options) { o.Suspect = func(name string) { suspects <- name } })
		g.add()
		g.add()
		g.within(spread, "m0 alive, m1 alive, m2 alive", g.members...)
		g.stops[1]()
		g.within(20*time.Second, "m0 alive, m1 left, m2 alive", g.members[0], g.members[2])
		for len(suspects) > 0 {
			<-suspects // it may be nominated: memberlist's messages and ours overtake one another
		}
		g.crash(2)
		start := time.Now()
		testenv.Equal(t, <-suspects, "m2", "suspected:")
		t.Logf("nominated %v after it vanished", time.Since(start))
		g.within(time.Second, "m0 alive, m1 left, m2 silent", g.members[0])
		// It comes back at another address.
		g.members, g.stops = g.members[:2], g.stops[:2]
		g.add(func(o *Options) {
			o.Address = at(77)
			o.Ask = func() []netip.AddrPort { return []netip.AddrPort{at(0)} }
		})
		g.within(10*time.Second, "m0 alive, m1 left, m2 alive", g.members[0])
		testenv.Equal(t, g.members[0].Members()[2].Address, at(77), "it is known at")
	})
}

// TestHalvesMergeAfterAPartition: two halves of a cluster that was cut for longer than memberlist remembers the dead
// find one another.
func TestHalvesMergeAfterAPartition(t *testing.T) {
	for _, length := range []time.Duration{40 * time.Second, 20 * time.Minute} {
		t.Run(length.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGroup(t)
				for range 5 {
					g.add(func(o *Options) {
						if o.Name != "m0" { // only known members help
							o.Ask = func() []netip.AddrPort { return []netip.AddrPort{at(0)} }
						}
					})
				}
				all := "m0 alive, m1 alive, m2 alive, m3 alive, m4 alive"
				g.within(spread, all, g.members...)
				g.members[3].o.Ask, g.members[4].o.Ask = nil, nil
				right := func(a netip.AddrPort) bool { return a == at(3) || a == at(4) }
				g.net.split(right)
				time.Sleep(length)
				// Two of five take longer to believe that it is not their own network: memberlist probes less often
				// then.
				g.within(time.Minute, "m0 alive, m1 alive, m2 alive, m3 silent, m4 silent", g.members[:3]...)
				g.within(time.Minute, "m0 silent, m1 silent, m2 silent, m3 alive, m4 alive", g.members[3:]...)
				g.net.split(nil)
				healed := time.Now()
				g.within(spread, all, g.members...)
				t.Logf("all know all again after %v", time.Since(healed))
			})
		})
	}
}

// TestMemberStartsFromItsFile: a member that starts with nothing but its file finds the others.
func TestMemberStartsFromItsFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		g := newGroup(t)
		for range 3 {
			g.add(func(o *Options) { o.File = filepath.Join(dir, o.Name) })
		}
		all := "m0 alive, m1 alive, m2 alive"
		g.within(spread, all, g.members...)
		time.Sleep(time.Second)
		g.stops[2]()
		g.members, g.stops = g.members[:2], g.stops[:2]
		g.add(func(o *Options) { o.File, o.Ask = filepath.Join(dir, o.Name), nil })
		testenv.Equal(t, g.known[3], "m0 remembered, m1 remembered, m2 alive", "at its start it knows:")
		g.within(spread, all, g.members...)
	})
}

// TestMachineWithoutKeyIsNoMember: a machine without the cluster's key is no member, and is logged once.
func TestMachineWithoutKeyIsNoMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t)
		var log testenv.Log
		g.add(func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		g.add()
		g.add(func(o *Options) {
			foreign := clusterconfig.NewGossipKeys()
			o.Keys, o.Ask = foreign, func() []netip.AddrPort { return []netip.AddrPort{at(0), at(1)} }
		})
		time.Sleep(time.Minute)
		g.within(0, "m0 alive, m1 alive", g.members[:2]...)
		g.within(0, "m2 alive", g.members[2])
		// Packets by hand, of a foreign sender: also one that claims to be of a member.
		h := g.net.host(at(99))
		for _, junk := range [][]byte{{}, {4}, bytes.Repeat([]byte{1}, 1400), append([]byte{9, 1}, make([]byte, 60)...)} {
			for range 3 {
				testenv.Must(h.WriteTo(junk, h.LocalAddr()))(t)
				g.net.hosts[at(0)].packets <- datagram{junk, at(1)}
			}
		}
		time.Sleep(10 * time.Second)
		g.within(0, "m0 alive, m1 alive", g.members[:2]...)
		if n := strings.Count(log.String(), "without the cluster's gossip key"); n != 1 {
			t.Errorf("%d lines say that a sender has not the key:\n%s", n, log.String())
		}
	})
}

// TestTwoOfOneName: it is said once, and the first stays.
func TestTwoOfOneName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t)
		var log testenv.Log
		g.add(func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		g.add()
		g.within(spread, "m0 alive, m1 alive", g.members...)
		g.add(func(o *Options) { o.Name, o.Ask = "m1", func() []netip.AddrPort { return []netip.AddrPort{at(0)} } })
		time.Sleep(2 * time.Minute)
		g.within(0, "m0 alive, m1 alive", g.members[0])
		testenv.Equal(t, g.members[0].Members()[1].Address, at(1), "m1 is at")
		if n := strings.Count(log.String(), "both claim to be the node m1"); n != 1 {
			t.Errorf("%d lines about it:\n%s", n, log.String())
		}
	})
}

// TestKeysRotateWithoutLosingMembers: the keys are replaced under members that talk; none is lost, and the old key is
// worth nothing then.
func TestKeysRotateWithoutLosingMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t)
		var stopping atomic.Bool // a member that stops may be suspected for a moment
		suspected := func(o *Options) {
			self := o.Name
			o.Suspect = func(name string) {
				testenv.True(t, stopping.Load(), "%s suspects %s", self, name)
			}
		}
		for range 4 {
			g.add(suspected)
		}
		all := "m0 alive, m1 alive, m2 alive, m3 alive"
		g.within(spread, all, g.members...)
		old := g.keys
		added := old.WithNew()
		for _, keys := range []clusterconfig.GossipKeys{added, added.UsingLast(), added.UsingLast().OnlyFirst()} {
			for _, m := range g.members { // not all at once
				testenv.NoError(t, m.SetKeys(keys))
				time.Sleep(3 * time.Second)
			}
			time.Sleep(spread)
			for _, m := range g.members {
				for _, i := range m.Members() {
					testenv.Equal(t, i.KeyGeneration, keys.Generation, "%s hears of %s the generation", m.o.Name, i.Name)
				}
			}
		}
		g.within(0, all, g.members...)
		g.add(func(o *Options) { o.Keys = old })
		time.Sleep(30 * time.Second)
		g.within(0, all, g.members[:4]...)
		testenv.NoError(t, g.members[4].SetKeys(added.UsingLast().OnlyFirst()))
		g.within(spread, all+", m4 alive", g.members...)
		stopping.Store(true)
	})
}

// TestBadMetaAffectsOneMemberOnly: an unreadable record of one member concerns that one alone.
func TestBadMetaAffectsOneMemberOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t)
		g.add()
		bad := g.add()
		g.add()
		bad.o.Logger.Debug("it is made to talk nonsense")
		bad.mu.Lock()
		bad.raw = []byte{metaFormat, tagAPI, 200}
		bad.mu.Unlock()
		bad.Update(func(*Meta) {})
		g.within(spread, "m0 alive, m1 alive, m2 alive", g.members[0])
		time.Sleep(spread)
		for _, m := range []*Member{g.members[0], g.members[2]} {
			g.within(0, "m0 alive, m1 alive, m2 alive", m)
			if got := m.Members()[1]; got.Role != 0 || got.Version != "" {
				t.Errorf("%s takes it for %+v", m.o.Name, got)
			}
			testenv.Equal(t, m.Members()[0].Role, RoleServer, "%s takes the server for", m.o.Name)
		}
	})
}

// TestMemberWithBadNameIsRefused: a machine with the key and a name that no Node could have is no member, and nothing
// of the name reaches the log as it is.
func TestMemberWithBadNameIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t)
		var log testenv.Log
		good := g.add(func(o *Options) {
			o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		})
		h := g.net.host(at(50))
		o := Options{Name: "m50\x1b[2J", Address: at(50), Packets: h, Streams: h, Keys: g.keys, Reach: nopObserver{},
			Logger: slog.New(slog.DiscardHandler)}
		testenv.Fails(t, testenv.Err(New(o)), "a program of ours takes such a name")
		h = g.net.host(at(51))
		o.Address, o.Packets, o.Streams = at(51), h, h
		bad := &Member{o: o, roster: newRoster(o.Name, time.Now), log: &libraryLog{logger: o.Logger},
			metaChanged: make(chan struct{}, 1), socketFailure: make(chan error, 1)}
		var err error
		bad.ring, err = memberlist.NewKeyring(g.keys.Keys, g.keys.Keys[0])
		testenv.NoError(t, err)
		bad.transport = newTransport(&o, nil, func(error) {}, bad.dialed)
		config := bad.config()
		config.Alive = nil
		bad.list, err = memberlist.Create(config)
		testenv.NoError(t, err)
		testenv.Must(bad.list.Join([]string{at(0).String()}))(t)
		time.Sleep(spread) // the bubble's time: what must not happen has no event to wait for
		for _, m := range good.Members() {
			testenv.Equal(t, m.Name, name(0), "is a member:")
		}
		if text := log.String(); strings.Contains(text, "\x1b") || !strings.Contains(text, "cannot be a node's name") {
			t.Errorf("the log:\n%q", text)
		}
		testenv.Check(t, bad.list.Shutdown())
	})
}
