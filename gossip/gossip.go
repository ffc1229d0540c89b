// SPDX-License-Identifier: Apache-2.0

// Package gossip makes the machines of a cluster known to one another (hashicorp/memberlist, after the paper on SWIM,
// Das, Gupta and Motivala, 2002).
//
// Each machine is a member. It tells what it is and where it is reached ([Meta]), hears the same of all others through
// whichever member it reaches, and learns within seconds that one does not answer any more. It owns the packets and
// streams by which that goes, the list of members in memory and the file of those that it knew last. It decides
// nothing: a machine with the cluster's key is a member and can say what it likes, so what is learnt here is a reason
// to look and never the proof. It knows neither the API nor the store.
package gossip

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/internal/version"
)

const (
	// leaveTimeout is how long a member that stops tries to say so.
	leaveTimeout = time.Second
	// pruneAfter and maxSilent bound what is kept of members that are silent. They are asked again for as long.
	pruneAfter = 72 * time.Hour
	maxSilent  = 256
	// maxMembers bounds the live members where the limit is not known.
	maxMembers = 4096
	// askAlone is how often a member that knows no live one asks those that it knew, at first and at most.
	askAlone, askAloneMost = time.Second, 15 * time.Second
	// askEvery is how often the silent ones are asked again while there are live ones, askEach what every live member
	// adds, so that a machine that is off is not asked more often in a larger cluster.
	askEvery, askEach = 15 * time.Second, 100 * time.Millisecond
	// askMost is how many are asked in one round. A round waits for each of them.
	askMost = 3
	// lostRounds is how many rounds a machine that is lost asks only at addresses that it knows.
	lostRounds = 1
)

// Options are all required but File, Ask, Names, Lost, Links, Most, Suspect, Reach and Logger.
type Options struct {
	// Name is the node's name; no two members have one.
	Name string
	// Address is where other members reach this one: streams by TCP, packets by UDP on the same port.
	Address netip.AddrPort
	// Packets and Streams are how. A Member closes them.
	Packets net.PacketConn
	Streams Streams
	Keys    clusterconfig.GossipKeys
	Meta    Meta
	// File keeps the members that were known last.
	File string
	// Ask lists further addresses at which members may be: those that the operator named and those in the API.
	Ask func() []netip.AddrPort
	// Names are host:port of servers that the operator named. They are resolved while Lost.
	Names []string
	// Lost says that this machine reaches no server that could help it. Only then is anybody asked by name or by
	// multicast.
	Lost func() bool
	// Links are the machine's that lead to others, on which questions are asked by multicast. Nil means none.
	Links func() ([]net.Interface, error)
	// Most is how many live members there can be, 0 if that is not known; more of them are refused. It is called under
	// memberlist's lock and must not block.
	Most func() int
	// Suspect is called with a member that memberlist suspects, and must not block. That is a
	// nomination: the probe of the machine itself decides.
	Suspect func(name string)
	Reach   Reach
	Logger  *slog.Logger

	asker    asker    // tests set it
	resolver resolver // tests set it
}

// Member is this machine as a member.
type Member struct {
	o      Options
	list   *memberlist.Memberlist
	ring   *memberlist.Keyring
	roster *roster
	log    *libraryLog
	// metaChanged wakes Run when Meta has changed; one: a second change is sent with the first.
	metaChanged timers.Signal
	// failed has the error of a socket that broke; one: the first is reported.
	failed    chan error
	transport *transport
	search    *searcher
	// ended says that Run has returned: memberlist's timers may fire a moment longer.
	ended atomic.Bool
	// resting is what wake wakes; nil until it rests, which is while memberlist is made.
	resting atomic.Pointer[memberlist.Memberlist]

	mu   sync.Mutex
	meta Meta
	// raw, when set, is sent instead of meta; tests set it.
	raw []byte
}

// New makes this machine a member and begins to answer others. Run finds them.
func New(o Options) (*Member, error) {
	o.Logger = cmp.Or(o.Logger, slog.Default())
	if err := errors.Join(o.Keys.Validate(), checkName(o.Name), checkAddress(o.Address)); err != nil {
		return nil, errors.Join(err, o.Packets.Close(), o.Streams.Close())
	}
	if o.Reach == nil {
		o.Reach = nopObserver{}
	}
	m := &Member{
		o: o, roster: newRoster(o.Name, time.Now), log: &libraryLog{logger: o.Logger},
		metaChanged: timers.NewSignal(), failed: make(chan error, 1), meta: o.Meta,
	}
	m.meta.Protocol, m.meta.KeyGeneration = uint64(version.Protocol()), o.Keys.Generation
	for _, k := range readKnown(o.File) {
		if k.Name != o.Name {
			m.roster.update(k.Name, func(i *Info) {
				i.Address, i.State = k.Address, Remembered
				if k.Server {
					i.Role = RoleServer
				}
			})
		}
	}
	var err error
	if m.ring, err = memberlist.NewKeyring(o.Keys.Keys, o.Keys.Keys[0]); err != nil {
		return nil, errors.Join(fmt.Errorf("gossip: %w", err), o.Packets.Close(), o.Streams.Close())
	}
	m.search = newSearcher(m)
	if err := m.search.setKeys(o.Keys); err != nil {
		return nil, errors.Join(err, o.Packets.Close(), o.Streams.Close())
	}
	m.transport = newTransport(&o, m.search.receive, func(err error) { m.failed <- err }, m.dialed)
	if m.list, err = memberlist.Create(m.config()); err != nil {
		return nil, errors.Join(fmt.Errorf("gossip: %w", err), m.transport.Shutdown())
	}
	m.rest()
	return m, nil
}

// checkName refuses what cannot be the name of a Node: members are nodes, and names reach logs and terminals.
func checkName(name string) error {
	if len(name) > validation.LabelValueMaxLength || len(validation.IsDNS1123Subdomain(name)) > 0 {
		return fmt.Errorf("gossip: %q cannot be a node's name", name)
	}
	return nil
}

func checkAddress(a netip.AddrPort) error {
	if !a.IsValid() || a.Addr().IsUnspecified() || a.Port() == 0 {
		return fmt.Errorf("gossip: other machines cannot reach this one at %s", a)
	}
	return nil
}

// config is memberlist's profile for a local network, with less to do at rest
// (docs/adr/0070-gossip-and-changed-addresses.md).
func (m *Member) config() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = m.o.Name
	c.Transport = m.transport
	c.AdvertiseAddr, c.AdvertisePort = m.o.Address.Addr().String(), int(m.o.Address.Port())
	c.BindPort = c.AdvertisePort // what Join takes for an address without one
	c.Keyring = m.ring
	c.Delegate, c.Events, c.Conflict, c.Alive = delegate{m}, events{m}, conflicts{m}, names{m}
	c.Logger = m.log.std()
	c.EnableCompression = false    // packets are small, and each would cost a compressor of 60 KB
	c.UDPBufferSize = maxPacket    // fits every network that IPv6 does, through tunnels too
	c.GossipInterval = gossipEvery // there is seldom anything to tell; news goes out with probes as well
	c.PushPullInterval = pushPullEvery
	c.TCPTimeout = streamTimeout
	c.DeadNodeReclaimTime = reclaimAfter
	c.DelegateProtocolMin, c.DelegateProtocolMax, c.DelegateProtocolVersion = 1, 1, 1
	return c
}

const (
	maxPacket     = 1200 // bytes, as QUIC's (RFC 9000 §14)
	gossipEvery   = 500 * time.Millisecond
	pushPullEvery = time.Minute
	streamTimeout = 5 * time.Second
	// reclaimAfter is how long a silent member's name stays at its address: the machine may come back with another one.
	reclaimAfter = time.Second
)

// Members lists all that are known, this machine among them: servers first, then by name.
func (m *Member) Members() []Info { return m.roster.list() }

// MembersChanged returns a channel that is closed when the list changes next.
func (m *Member) MembersChanged() <-chan struct{} { return m.roster.next() }

// Update changes what this member says of itself.
func (m *Member) Update(f func(*Meta)) {
	m.mu.Lock()
	f(&m.meta)
	m.mu.Unlock()
	m.metaChanged.Send() // it will be read with the last one
}

// SetKeys puts other keys in place of those in use.
func (m *Member) SetKeys(k clusterconfig.GossipKeys) error {
	if err := k.Validate(); err != nil {
		return err
	}
	for _, key := range k.Keys {
		if err := m.ring.AddKey(key); err != nil {
			return fmt.Errorf("gossip: %w", err)
		}
	}
	if err := m.ring.UseKey(k.Keys[0]); err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	for _, old := range slices.Clone(m.ring.GetKeys()) {
		if !slices.ContainsFunc(k.Keys, func(key []byte) bool { return string(key) == string(old) }) {
			if err := m.ring.RemoveKey(old); err != nil {
				return fmt.Errorf("gossip: %w", err)
			}
		}
	}
	m.Update(func(meta *Meta) { meta.KeyGeneration = k.Generation })
	return m.search.setKeys(k)
}

// Run looks for members until ctx is done, then says good-bye and returns when nothing is received any more.
// memberlist's own goroutines end a moment later, and what they still find is dropped.
func (m *Member) Run(ctx context.Context) error {
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	running.Go(func() { m.find(ctx) })
	running.Go(func() { m.saveMembers(ctx) })
	var err error
	for ctx.Err() == nil && err == nil {
		select {
		case <-ctx.Done():
		case err = <-m.failed:
		case <-m.metaChanged:
			if err := m.list.UpdateNode(leaveTimeout); err != nil { // it goes with the next exchange all the same
				m.o.Logger.Debug("gossip: the news of this machine was not sent at once", "error", err)
			}
		}
	}
	cancel()
	running.Wait()
	m.announceLeaving()
	m.ended.Store(true)
	if leaveErr := m.list.Leave(leaveTimeout); leaveErr != nil {
		m.o.Logger.Debug("gossip: the other members could not be notified that this machine stops", "error", leaveErr)
	}
	return errors.Join(err, m.list.Shutdown())
}

// saveMembers writes the list of members when it has changed.
func (m *Member) saveMembers(ctx context.Context) {
	if m.o.File == "" {
		return
	}
	last := ""
	for {
		changed := m.MembersChanged()
		if err := writeKnown(m.o.File, m.Members()); err != nil && err.Error() != last {
			last = err.Error()
			m.o.Logger.Warn("gossip: the list of members could not be kept", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// find asks those who are not heard of, again and again: memberlist forgets them, and two halves of a cluster that was
// cut would not find one another.
func (m *Member) find(ctx context.Context) {
	alone, lost := askAlone, 0
	for {
		if m.o.Lost != nil && m.o.Lost() {
			if lost++; lost > lostRounds {
				m.search.search(ctx)
			}
		} else if lost > 0 {
			lost = 0
			m.search.reset()
		}
		m.roster.prune(pruneAfter, maxSilent)
		for _, address := range m.candidates() {
			if ctx.Err() != nil {
				return
			}
			_, err := m.list.Join([]string{address.String()})
			m.o.Logger.Debug("gossip: asked a machine that is not heard of", "address", address, "error", err)
			if err != nil {
				m.search.drop(address)
			}
		}
		pause := askEvery + time.Duration(m.list.NumMembers())*askEach
		if lost > 0 || m.list.NumMembers() <= 1 {
			pause, alone = alone, min(2*alone, askAloneMost)
		} else {
			alone = askAlone
		}
		if !timers.Sleep(ctx, pause/2+rand.N(pause)) { // not all members at the same moment
			return
		}
	}
}

// candidates are addresses at which no live member is known, some of them by chance.
func (m *Member) candidates() []netip.AddrPort {
	live := map[netip.AddrPort]bool{m.o.Address: true}
	var out []netip.AddrPort
	for _, i := range m.Members() {
		if i.State == Alive {
			live[i.Address] = true
		} else {
			out = append(out, i.Address)
		}
	}
	if m.o.Ask != nil {
		out = append(out, m.o.Ask()...)
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	out = slices.DeleteFunc(slices.Compact(out), func(a netip.AddrPort) bool { return live[a] || checkAddress(a) != nil })
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	found := slices.DeleteFunc(m.Found(), func(a netip.AddrPort) bool { return live[a] })
	return append(found, out[:min(len(out), askMost)]...)
}
