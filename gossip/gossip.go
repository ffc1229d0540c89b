// SPDX-License-Identifier: Apache-2.0

// Package gossip makes the machines of a cluster known to one another (hashicorp/memberlist, after the paper on SWIM,
// Das, Gupta and Motivala, 2002).
//
// Each machine is a member. It publishes its role and addresses ([Meta]), receives those of all others through any
// member that it reaches, and learns within seconds that one became unresponsive. The package owns its packets and
// streams, the list of members in memory and the file of the last known ones. It decides nothing: every machine with
// the cluster's key is a member and can send anything, so its information is a reason to check and never a proof. It
// knows neither the API nor the store.
//
// Its goroutines: memberlist's own; accept loops of packets and streams; the search for members that do not answer; the
// file of members; four answers at most to machines that search, 0.3 s each; one for each handshake, 10 s at most.
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
	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/internal/version"
)

const (
	// leaveTimeout limits how long a stopping member tries to announce that.
	leaveTimeout = time.Second
	// pruneAfter and maxSilent limit how long, and how many, unresponsive members are remembered. They are dialed as
	// long.
	pruneAfter = 72 * time.Hour
	maxSilent  = 256
	// maxMembers limits the live members where the limit is not known.
	maxMembers = 4096
	// askAlone and askAloneMost are the first and the longest pause between attempts to reach any member, while none is
	// known to be alive.
	askAlone, askAloneMost = time.Second, 15 * time.Second
	// askEvery is the interval at which unresponsive members are dialed while there are live ones. askEach is added for
	// every live member, so that a machine that is off is not dialed more often in a larger cluster.
	askEvery, askEach = 15 * time.Second, 100 * time.Millisecond
	// askMost is how many are dialed in one round. A round waits for each of them.
	askMost = 3
	// lostRounds is for how many rounds a machine that is lost only dials addresses that it knows.
	lostRounds = 1
)

// All fields of Options are required, except File, Ask, Names, Lost, Links, Most, Suspect, Reach and Logger.
type Options struct {
	// Name is the node's name, which no other member has.
	Name string
	// Address is where other members reach this one: streams by TCP, packets by UDP on the same port.
	Address netip.AddrPort
	// Packets and Streams are the sockets for that. A Member closes them.
	Packets net.PacketConn
	Streams Streams
	Keys    clusterconfig.GossipKeys
	Meta    Meta
	// File stores the last known members.
	File string
	// Ask lists further addresses at which members may be: those that the operator named and those in the API.
	Ask func() []netip.AddrPort
	// Names are host:port of servers that the operator named. They are resolved while Lost.
	Names []string
	// Lost reports whether this machine reaches no server that could help it. Only then it searches by name and by
	// multicast.
	Lost func() bool
	// Links returns the machine's interfaces to other machines, for multicast questions. nil means none.
	Links func() ([]net.Interface, error)
	// Most returns how many live members there can be, or 0 if that is not known. More of them are rejected. It is
	// called under memberlist's lock and must not block.
	Most func() int
	// Suspect is called with a member that memberlist suspects, and must not block. A suspicion is only a reason to
	// check: the machine's own probe decides.
	Suspect func(name string)
	Reach   Reach
	Logger  *slog.Logger

	asker    asker    // tests set it
	resolver resolver // tests set it
}

// Member takes part in the gossip for this machine, and knows the other members.
type Member struct {
	o      Options
	list   *memberlist.Memberlist
	ring   *memberlist.Keyring
	roster *roster
	log    *libraryLog
	// metaChanged wakes Run when Meta has changed; capacity 1: a second change is sent with the first.
	metaChanged timers.Signal
	// socketFailure has the error of a socket that broke; capacity 1: the first is reported.
	socketFailure chan error
	transport     *transport
	search        *searcher
	// runEnded means that Run has returned: memberlist's timers may fire a moment longer.
	runEnded atomic.Bool
	// stoppedProbes is the memberlist whose probes wake starts again. It is nil while memberlist is made, before
	// stopProbes is called.
	stoppedProbes atomic.Pointer[memberlist.Memberlist]

	mu   sync.Mutex
	meta Meta
	// raw, when set, is sent instead of meta. Tests set it.
	raw []byte
}

// New makes this machine a member, which replies to others. Run finds them.
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
		metaChanged: timers.NewSignal(), socketFailure: make(chan error, 1), meta: o.Meta,
	}
	m.meta.Protocol, m.meta.KeyGeneration = uint64(version.Protocol()), o.Keys.Generation
	m.meta.Level, m.meta.Running = uint64(level.Newest()), max(o.Meta.Running, level.First)
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
	m.transport = newTransport(&o, m.search.receive, func(err error) { m.socketFailure <- err }, m.dialed)
	if m.list, err = memberlist.Create(m.config()); err != nil {
		return nil, errors.Join(fmt.Errorf("gossip: %w", err), m.transport.Shutdown())
	}
	m.stopProbes()
	return m, nil
}

// checkName rejects what cannot be the name of a Node: members are nodes, and names are written to logs and terminals.
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

// config returns memberlist's profile for a local network, with less work at rest
// (docs/adr/0070-gossip-and-changed-addresses.md).
func (m *Member) config() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = m.o.Name
	c.Transport = m.transport
	c.AdvertiseAddr, c.AdvertisePort = m.o.Address.Addr().String(), int(m.o.Address.Port())
	c.BindPort = c.AdvertisePort // Join uses it for an address without a port
	c.Keyring = m.ring
	c.Delegate, c.Events, c.Conflict, c.Alive = delegate{m}, events{m}, conflicts{m}, names{m}
	c.Logger = m.log.std()
	c.EnableCompression = false    // packets are small, and each would cost a compressor of 60 KB
	c.UDPBufferSize = maxPacket    // fits every network with IPv6, through tunnels too
	c.GossipInterval = gossipEvery // there is seldom a change, and probes carry changes as well
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
	// reclaimAfter is how long an unresponsive member's name stays bound to its address: the machine may return with
	// another.
	reclaimAfter = time.Second
)

// Members lists all known members, including this machine: servers first, then by name.
func (m *Member) Members() []Info { return m.roster.list() }

// MembersChanged returns a channel that is closed at the next change of the list.
func (m *Member) MembersChanged() <-chan struct{} { return m.roster.changes.Next() }

// Update changes this member's metadata.
func (m *Member) Update(f func(*Meta)) {
	m.mu.Lock()
	f(&m.meta)
	m.mu.Unlock()
	m.metaChanged.Send() // if a signal is pending, Run reads both changes at once
}

// SetKeys replaces the keys that encrypt packets. The first one encrypts what this member sends.
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

// Run looks for members until ctx is done, announces that it stops, and returns when nothing is received any more.
// memberlist's own goroutines end a moment later, and their results are dropped.
func (m *Member) Run(ctx context.Context) error {
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	running.Go(func() { m.findUnresponsive(ctx) })
	running.Go(func() { m.saveMembers(ctx) })
	var err error
	for ctx.Err() == nil && err == nil {
		select {
		case <-ctx.Done():
		case err = <-m.socketFailure:
		case <-m.metaChanged:
			if err := m.list.UpdateNode(leaveTimeout); err != nil { // the next exchange sends it all the same
				m.o.Logger.Debug("gossip: this machine's new metadata could not be sent at once", "error", err)
			}
		}
	}
	cancel()
	running.Wait()
	m.announceLeaving()
	m.runEnded.Store(true)
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
			m.o.Logger.Warn("gossip: the list of members could not be saved", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// findUnresponsive dials unresponsive members periodically: memberlist deletes them, and the two halves of a
// partitioned cluster would not find one another again.
func (m *Member) findUnresponsive(ctx context.Context) {
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
		for _, address := range m.searchTargets() {
			if ctx.Err() != nil {
				return
			}
			_, err := m.list.Join([]string{address.String()})
			m.o.Logger.Debug("gossip: tried to join by a machine that is no member yet", "address", address, "error", err)
			if err != nil {
				m.search.deleteAddress(address)
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

// searchTargets returns addresses at which no live member is known: the found servers, and some of the others at
// random.
func (m *Member) searchTargets() []netip.AddrPort {
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
