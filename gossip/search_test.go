// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// The sleeps of this file are of synctest bubbles: they take no time, and end when every goroutine waits.

func newKeys(t testing.TB) clusterconfig.GossipKeys {
	t.Helper()
	return clusterconfig.NewGossipKeys()
}

// TestChangedSearchDatagramIsNotRead: what one machine seals another one with the key reads, a changed one is never
// read, and an answer is no longer than its question.
func TestChangedSearchDatagramIsNotRead(t *testing.T) {
	old, keys, strange := newKeys(t), newKeys(t), newKeys(t)
	keys.Keys = append(keys.Keys, old.Keys...) // while they are replaced
	current := testenv.Must(searchCiphers(keys))(t)
	previous := testenv.Must(searchCiphers(old))(t)
	q := testenv.Must(newQuestion())(t)
	question := testenv.Must(q.datagram(previous[0]))(t)
	got, seal, err := openSearch(current, question)
	testenv.Require(t, err == nil && reflect.DeepEqual(got, q), "%v, %v", got, err)
	a := searchText{kind: kindAnswer, challenge: q.challenge}
	for i := range maxFound + 1 {
		a.servers = append(a.servers, netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), uint16(6443+i)))
	}
	answer := testenv.Must(a.datagram(seal))(t)
	a.servers = a.servers[:maxFound]
	if got, _, err := openSearch(previous, answer); err != nil || !reflect.DeepEqual(got, a) {
		t.Errorf("%v, %v", got, err)
	}
	if len(answer) != len(question) || len(question) > maxPacket {
		t.Errorf("a question of %d bytes, an answer of %d", len(question), len(answer))
	}
	none := testenv.Must(searchCiphers(strange))(t)
	if _, _, err := openSearch(none, question); err == nil {
		t.Error("another cluster reads it")
	}
	for i := range question {
		bad := slices.Clone(question)
		bad[i] ^= 1
		if _, _, err := openSearch(current, bad); err == nil {
			t.Errorf("it is read with another byte %d", i)
		}
	}
}

// FuzzSearchText: whatever was sealed, reading it ends well, and what was understood is written as it was.
func FuzzSearchText(f *testing.F) {
	f.Add([]byte{})
	f.Add(append([]byte{kindAnswer}, make([]byte, 40)...))
	f.Add(append(append([]byte{kindAnswer}, make([]byte, 16)...), 1, 4, 10, 0, 0, 5, 25, 43))
	f.Add(append(append([]byte{kindAnswer}, make([]byte, challengeSize)...), append([]byte{1, 255}, make([]byte, 300)...)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := decodeSearch(data)
		if err != nil {
			return
		}
		testenv.False(t, len(got.servers) > maxFound, "%d servers", len(got.servers))
		for _, s := range got.servers {
			testenv.True(t, checkAddress(s) == nil, "%v is no address to dial", s)
		}
	})
}

// FuzzSearchDatagram: a datagram of a foreign sender does nothing.
func FuzzSearchDatagram(f *testing.F) {
	ciphers := testenv.Must(searchCiphers(newKeys(f)))(f)
	f.Add([]byte(searchMagic))
	f.Add(append([]byte(searchMagic), make([]byte, datagramSize-len(searchMagic))...))
	f.Fuzz(func(t *testing.T, data []byte) {
		if got, _, err := openSearch(ciphers, data); err == nil {
			t.Errorf("%v was read", got)
		}
	})
}

// TestQuestionsGoToServersPort: a member at other ports, lower or higher, keeps no question from the usual
// one and the machine's own.
func TestQuestionsGoToServersPort(t *testing.T) {
	c := testenv.Must(net.ListenPacket("udp", "127.0.0.1:0"))(t)
	defer c.Close()
	own := uint16(c.LocalAddr().(*net.UDPAddr).Port)
	got := ports(c, []uint16{4, 3, 2, 1, 1, defaultPort, own})
	testenv.EqualSlices(t, got, []uint16{defaultPort, own, 1, 2}, "asked at")
}

// sender is a machine of the network.
func sender(n int) net.Addr {
	return &net.UDPAddr{IP: net.IPv4(10, 0, byte(n>>8), byte(n)), Port: 6443}
}

// TestSearchAnswersAreRateLimited: a question is answered once, and no more of them than can do harm.
func TestSearchAnswersAreRateLimited(t *testing.T) {
	now := time.Now()
	s := &searcher{replyLimits: newAllowance()}
	answered := 0
	for i := range 1000 {
		if s.mayAnswer(challenge{byte(i), byte(i >> 8)}, sender(i), now) {
			answered++
		}
	}
	testenv.Equal(t, answered, answersAtOnce, "answers at once:")
	testenv.False(t, s.mayAnswer(challenge{0, 0}, sender(0), now.Add(time.Minute)), "a question that was recorded is answered once more")
	for i := range 2 * seenQuestions {
		now = now.Add(time.Second)
		s.mayAnswer(challenge{1, byte(i), byte(i >> 8)}, sender(i), now)
	}
	testenv.False(t, len(s.seenChallenges) > seenQuestions, "%d are remembered", len(s.seenChallenges))
}

// TestReplayingMachineDoesNotBlockOthersAnswers: one machine that repeats what it recorded, as fast as it likes, keeps
// no other one from an answer; and what is remembered of machines has a bound.
func TestReplayingMachineDoesNotBlockOthersAnswers(t *testing.T) {
	now := time.Now()
	s := &searcher{replyLimits: newAllowance()}
	answered := 0
	for i := range 6000 {
		now = now.Add(10 * time.Millisecond)
		if s.mayAnswer(challenge{1, byte(i), byte(i >> 8)}, sender(1), now) {
			answered++
		}
		if i%100 == 99 && !s.mayAnswer(challenge{2, byte(i), byte(i >> 8)}, sender(2+i/100), now) {
			t.Fatalf("another machine's question has no answer after %d of the first", i)
		}
	}
	if most := senderAtOnce + int(60*senderPerSecond); answered > most || answered < most/2 {
		t.Errorf("%d answers to one machine in a minute, want %d", answered, most)
	}
	for i := range 2 * maxSenders {
		now = now.Add(time.Second / answersPerSecond)
		s.mayAnswer(challenge{3, byte(i), byte(i >> 8)}, sender(i), now)
	}
	testenv.False(t, len(s.replyLimits.senders) > maxSenders, "%d machines are remembered", len(s.replyLimits.senders))
	if s.replyLimits.allow(netip.MustParseAddr("10.9.0.1"), now.Add(time.Hour)); len(s.replyLimits.senders) != 1 {
		t.Errorf("%d machines are remembered after an hour", len(s.replyLimits.senders))
	}
}

// TestWrongAddressesAreForgotten: an address that a search found and that does not answer is dropped.
func TestWrongAddressesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, a := newGroup(t), &air{}
		m := g.add(on(a, func() bool { return true }))
		wrong := make([]netip.AddrPort, 2*maxFound)
		for i := range wrong {
			wrong[i] = netip.AddrPortFrom(netip.MustParseAddr("10.9.0.1"), uint16(1000+i))
		}
		m.search.mu.Lock()
		m.search.foundServers = wrong
		m.search.mu.Unlock()
		time.Sleep(10 * time.Minute)
		if found := m.Found(); len(found) > 0 {
			t.Errorf("it remembers %v", found)
		}
	})
}

// TestInventedMembersAreBounded: there are no more live members than there can be; those that are there stay, and come
// back.
func TestInventedMembersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t)
		most := 3
		bounded := func(o *Options) { o.Most = func() int { return most } }
		members := []*Member{g.add(bounded), g.add(bounded), g.add(bounded)}
		time.Sleep(time.Minute)
		for i := range 20 {
			if (names{members[0]}).NotifyAlive(&memberlist.Node{Name: fmt.Sprintf("invented%d", i)}) == nil {
				t.Fatalf("invented%d is taken", i)
			}
		}
		for _, m := range members {
			for _, i := range m.Members() {
				testenv.Check(t, (names{members[0]}).NotifyAlive(&memberlist.Node{Name: i.Name}), "%s", i.Name)
			}
		}
		most = 0 // not known
		testenv.Check(t, (names{members[0]}).NotifyAlive(&memberlist.Node{Name: "another"}))
	})
}

// air is multicast on a test's network: who listens hears what anybody sends, unless it is elsewhere.
type air struct {
	mu    sync.Mutex
	hosts []*host
	sent  int
}

// link is a machine's way to it.
type link struct {
	air *air
	own *host
}

func (l link) send(b []byte, _ []uint16) (int, error) {
	l.air.mu.Lock()
	defer l.air.mu.Unlock()
	l.air.sent++
	for _, h := range l.air.hosts {
		select {
		case h.packets <- datagram{slices.Clone(b), l.own.address}:
		default:
		}
	}
	return 1, nil
}

func (a *air) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sent
}

// on puts a member on the air; lost says whether it searches.
func on(a *air, lost func() bool) func(*Options) {
	return func(o *Options) {
		o.Ask = nil
		o.Lost = lost
		o.Links = func() ([]net.Interface, error) { return nil, nil }
		l := link{a, o.Packets.(*host)}
		a.mu.Lock()
		a.hosts = append(a.hosts, l.own)
		a.mu.Unlock()
		o.asker = l
	}
}

// TestIsolatedMachineSearchesUntilFound: a machine that knows no address finds the servers by multicast, as long as it
// is lost, and is silent then.
func TestIsolatedMachineSearchesUntilFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, a := newGroup(t), &air{}
		never := func() bool { return false }
		g.add(on(a, never))
		time.Sleep(time.Minute)
		if n := a.count(); n != 0 {
			t.Fatalf("a machine that is not lost asked %d times", n)
		}
		var late atomic.Pointer[Member]
		late.Store(g.add(on(a, func() bool { m := late.Load(); return m == nil || len(m.Members()) < 2 })))
		time.Sleep(time.Minute)
		if n := len(late.Load().Members()); n != 2 {
			t.Errorf("it knows %d machines after %d questions", n, a.count())
		}
		asked := a.count()
		time.Sleep(10 * time.Minute)
		if n := a.count(); n != asked || len(late.Load().Found()) != 0 {
			t.Errorf("%d more questions after it was found; it remembers %v", n-asked, late.Load().Found())
		}
	})
}

// TestUnansweredSearchSlowsDown: there is no answer, and the questions become few.
func TestUnansweredSearchSlowsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, a := newGroup(t), &air{}
		g.add(on(a, func() bool { return true }))
		time.Sleep(10 * time.Minute)
		if n := a.count(); n < 10 || n > 80 {
			t.Errorf("%d questions in ten minutes", n)
		}
	})
}

// zone is a name server's, with one name in it.
type zone struct {
	mu    sync.Mutex
	name  string
	addr  netip.Addr // invalid: it does not answer
	asked int
}

func (z *zone) points(to netip.Addr) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.addr = to
}

func (z *zone) count() int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.asked
}

func (z *zone) LookupPort(ctx context.Context, network, service string) (int, error) {
	return net.DefaultResolver.LookupPort(ctx, network, service)
}

func (z *zone) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.asked++
	if host != z.name || !z.addr.IsValid() {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return []netip.Addr{z.addr}, nil
}

// TestMovedServerIsFoundByName: a server has another address, which no member can send to an agent, and there is no
// multicast: the name that the agent's operator gave leads to it as soon as the name server has the new address. An
// agent that is not lost asks for no name.
func TestMovedServerIsFoundByName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, z := newGroup(t), &zone{name: "boat.example", addr: at(0).Addr()}
		g.add()
		var agent atomic.Pointer[Member]
		alive := func() (n int) {
			if m := agent.Load(); m != nil {
				for _, i := range m.Members() {
					if i.State == Alive {
						n++
					}
				}
			}
			return n
		}
		agent.Store(g.add(func(o *Options) {
			o.Ask, o.Names, o.resolver = nil, []string{"boat.example:6443"}, z
			o.Lost = func() bool { return alive() < 2 }
		}))
		time.Sleep(time.Minute) // fake time
		if n := alive(); n != 2 {
			t.Fatalf("at its start it finds %d machines after %d questions for the name: %s", n, z.count(), views(agent.Load()))
		}
		asked := z.count()
		time.Sleep(10 * time.Minute) // fake time
		if n := z.count(); n != asked {
			t.Errorf("%d questions for the name of one that is not lost", n-asked)
		}

		z.points(netip.Addr{})
		g.crash(0)
		moved := at(7)
		g.add(func(o *Options) {
			o.Name, o.Address, o.Ask = "m0", moved, nil
			o.Meta.Role, o.Meta.API, o.Meta.Addresses = RoleServer, []netip.AddrPort{moved}, []netip.Addr{moved.Addr()}
		})
		time.Sleep(10 * time.Minute) // fake time
		if n := alive(); n != 1 || z.count() == asked {
			t.Fatalf("while the name has no address %d machines are alive, after %d more questions: %s", n, z.count()-asked, views(agent.Load()))
		}
		z.points(moved.Addr())
		time.Sleep(5 * time.Minute) // fake time
		if n := alive(); n != 2 {
			t.Errorf("the name has the new address: %s, found %v", views(agent.Load()), agent.Load().Found())
		}
	})
}

// TestNamesAndAddressesAreResolved: names and addresses become addresses; what is neither is left out.
func TestNamesAndAddressesAreResolved(t *testing.T) {
	got := resolve(t.Context(), net.DefaultResolver, []string{"localhost:6443", "10.0.0.5:7443", "nothing", "[fd00::5]:6443"})
	for _, want := range []string{"127.0.0.1:6443", "10.0.0.5:7443", "[fd00::5]:6443"} {
		testenv.True(t, slices.Contains(got, netip.MustParseAddrPort(want)), "%v lack %s", got, want)
	}
}
