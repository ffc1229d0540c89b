// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// lookupTimeout limits the lookup of a name's addresses.
	lookupTimeout = 3 * time.Second
	// answerTimeout is how long to wait for replies to a multicast question.
	answerTimeout = time.Second
	// seenQuestions is how many questions a machine remembers, so that it does not reply to one twice.
	seenQuestions = 256
	// Agents reply after answerDelay at most. If there are many, only about fewAgents of them do.
	answerDelay = 300 * time.Millisecond
	fewAgents   = 8
	// defaultPort is the port of a machine without another configured port.
	defaultPort = 6443
	// maxPorts is how many ports a question is sent to.
	maxPorts = 4
)

// SearchOptions configure a search for the servers of a cluster whose addresses are not known any more.
type SearchOptions struct {
	// Packets is the machine's socket. No other reader may use it meanwhile.
	Packets net.PacketConn
	Keys    clusterconfig.GossipKeys
	// Links returns the machine's interfaces to other machines.
	Links func() ([]net.Interface, error)
	// Ports are further ports on which servers may listen, besides the machine's own and the usual one.
	Ports []uint16
}

// Search sends one question to the networks of the machine. It returns the servers' addresses from the replies of
// machines that have the cluster's key.
func Search(ctx context.Context, o SearchOptions) ([]netip.AddrPort, error) {
	s, err := searchCiphers(o.Keys)
	if err != nil || len(s) == 0 {
		return nil, err
	}
	q, err := newQuestion()
	if err != nil {
		return nil, err
	}
	n := &multicast{packets: o.Packets, links: o.Links}
	datagram, err := q.datagram(s[0])
	if err == nil {
		_, err = n.send(datagram, ports(o.Packets, o.Ports))
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = o.Packets.SetReadDeadline(time.Time{}) }() // the next reader waits without a deadline
	defer context.AfterFunc(ctx, func() { _ = o.Packets.SetReadDeadline(time.Unix(1, 0)) })()
	if err := o.Packets.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
		return nil, fmt.Errorf("gossip: wait for answers: %w", err)
	}
	var found []netip.AddrPort
	buffer := make([]byte, maxDatagram)
	for {
		length, _, err := o.Packets.ReadFrom(buffer)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return found, ctx.Err()
		case errors.Is(err, net.ErrClosed):
			return nil, err
		case err != nil:
			continue // an ICMP error for a packet that was sent
		}
		if a, _, err := openSearch(s, buffer[:length]); err == nil && a.kind == kindAnswer && a.challenge == q.challenge {
			found = appendNew(found, a.servers)
		}
	}
}

// ports returns the ports to which questions are sent: the usual one and the machine's own, then the lowest of the
// other known ones.
func ports(own net.PacketConn, more []uint16) []uint16 {
	out := []uint16{defaultPort}
	if a, ok := own.LocalAddr().(*net.UDPAddr); ok && a.Port > 0 && a.Port < 1<<16 && a.Port != defaultPort {
		out = append(out, uint16(a.Port))
	}
	for _, p := range slices.Sorted(slices.Values(more)) {
		if len(out) < maxPorts && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

func appendNew(a, b []netip.AddrPort) []netip.AddrPort {
	for _, s := range b {
		if len(a) < 2*maxFound && !slices.Contains(a, s) {
			a = append(a, s)
		}
	}
	return a
}

// asker sends questions to a machine's networks.
type asker interface {
	// send sends a datagram to the listeners on some ports, and returns how many it sent.
	send(b []byte, ports []uint16) (int, error)
}

// resolver looks up the addresses of a name. It is Go's own.
type resolver interface {
	LookupPort(ctx context.Context, network, service string) (int, error)
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// searcher sends and answers questions for a member.
type searcher struct {
	m        *Member
	n        asker
	resolver resolver

	mu             sync.Mutex
	seals          []cipher.AEAD
	openChallenge  challenge // of the open question
	foundServers   []netip.AddrPort
	replyReceived  timers.Signal // a reply was received
	seenChallenges []challenge
	replyLimits    allowance
}

func newSearcher(m *Member) *searcher {
	var n asker = &multicast{m.o.Packets, m.o.Links}
	if m.o.asker != nil {
		n = m.o.asker
	}
	r := m.o.resolver
	if r == nil {
		r = net.DefaultResolver
	}
	return &searcher{m: m, n: n, resolver: r, replyReceived: timers.NewSignal(), replyLimits: newAllowance()}
}

func (s *searcher) setKeys(keys clusterconfig.GossipKeys) error {
	ciphers, err := searchCiphers(keys)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seals = ciphers
	return nil
}

// Found returns the servers that the last search found. It returns none while there is no search.
func (m *Member) Found() []netip.AddrPort {
	m.search.mu.Lock()
	defer m.search.mu.Unlock()
	return slices.Clone(m.search.foundServers)
}

// reset deletes what was found.
func (s *searcher) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.foundServers, s.openChallenge = nil, challenge{}
}

// deleteAddress deletes an address that did not reply: a wrong one must not take the place of one in the next reply.
func (s *searcher) deleteAddress(address netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.foundServers = slices.DeleteFunc(s.foundServers, func(a netip.AddrPort) bool { return a == address })
}

// search looks up the addresses of names, and then asks the machine's networks for servers. It waits a moment for
// replies.
func (s *searcher) search(ctx context.Context) {
	found := resolve(ctx, s.resolver, s.m.o.Names)
	s.mu.Lock()
	s.foundServers = appendNew(found, s.foundServers[:min(len(s.foundServers), maxFound)])
	ciphers := s.seals
	s.mu.Unlock()
	q, err := newQuestion()
	if err != nil || len(ciphers) == 0 {
		return
	}
	datagram, err := q.datagram(ciphers[0])
	if err != nil {
		return
	}
	known := convert.Slice(s.m.Members(), func(i Info) uint16 { return i.Address.Port() })
	s.mu.Lock()
	s.openChallenge = q.challenge
	s.mu.Unlock()
	if sent, err := s.n.send(datagram, ports(s.m.o.Packets, known)); sent == 0 {
		s.m.o.Logger.Debug("gossip: the multicast query was not sent", "error", err)
		return
	}
	select {
	case <-ctx.Done():
	case <-s.replyReceived:
	case <-time.After(answerTimeout):
	}
}

// receive handles a datagram of a search. It returns a function that replies, or nil when there is no reply.
func (s *searcher) receive(b []byte, from net.Addr) func(closed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, seal, err := openSearch(s.seals, b)
	if err != nil {
		return nil
	}
	switch t.kind {
	case kindAnswer:
		if t.challenge == s.openChallenge {
			s.foundServers = appendNew(s.foundServers, t.servers)
			s.replyReceived.Send() // the signal may be pending already
		}
	case kindQuestion:
		if t.challenge != s.openChallenge && s.mayAnswer(t.challenge, from, time.Now()) {
			return func(closed <-chan struct{}) { s.answer(closed, seal, t.challenge, from) }
		}
	}
	return nil
}

// mayAnswer reports whether a question is new, and within the limits of replies to its sender and to all senders.
func (s *searcher) mayAnswer(c challenge, from net.Addr, now time.Time) bool {
	if slices.Contains(s.seenChallenges, c) {
		return false
	}
	var sender netip.Addr // zero for what is no UDP packet: these share one limit
	if u, ok := from.(*net.UDPAddr); ok {
		sender = u.AddrPort().Addr().Unmap()
	}
	if !s.replyLimits.allow(sender, now) {
		return false
	}
	s.seenChallenges = append(s.seenChallenges[max(0, len(s.seenChallenges)-seenQuestions+1):], c)
	return true
}

// answer sends the servers' addresses to the machine that asked. A server replies at once. Of agents, which may be
// many, a few reply, at different moments.
func (s *searcher) answer(closed <-chan struct{}, seal cipher.AEAD, c challenge, to net.Addr) {
	var servers []netip.AddrPort
	own, machines := false, 0
	for _, i := range s.m.Members() {
		if i.State != Alive {
			continue
		}
		machines++
		if i.Role == RoleServer {
			own = own || i.Self
			servers = appendNew(servers, i.API)
		}
	}
	if len(servers) == 0 || !own && rand.IntN(machines) >= fewAgents {
		return
	}
	if !own {
		select {
		case <-closed:
			return
		case <-time.After(rand.N(answerDelay)):
		}
	}
	a := searchText{kind: kindAnswer, challenge: c, servers: servers}
	datagram, err := a.datagram(seal)
	if err == nil {
		_, err = s.m.o.Packets.WriteTo(datagram, to)
	}
	if err != nil {
		s.m.o.Logger.Debug("gossip: could not reply to a machine that searches for servers", "error", err)
	}
}

// resolve looks up the addresses of names, each with a port. Those that are addresses need no lookup.
func resolve(ctx context.Context, r resolver, names []string) []netip.AddrPort {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	var out []netip.AddrPort
	for _, name := range names {
		host, port, err := net.SplitHostPort(name)
		if err != nil {
			continue
		}
		number, err := r.LookupPort(ctx, "tcp", port)
		if err != nil {
			continue
		}
		ips, err := r.LookupNetIP(ctx, "ip", host) // an address needs no lookup
		if err != nil {
			continue
		}
		for _, ip := range ips {
			out = appendNew(out, []netip.AddrPort{netip.AddrPortFrom(ip.Unmap(), uint16(number))})
		}
	}
	return out
}

// Known returns the addresses of the members that an earlier run knew, from its file.
func Known(file string) []netip.AddrPort {
	return convert.Slice(readKnown(file), func(k savedMember) netip.AddrPort { return k.Address })
}
