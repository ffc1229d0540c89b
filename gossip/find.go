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
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// lookupPatience bounds the question for the addresses of a name.
	lookupPatience = 3 * time.Second
	// answerPatience is how long answers to a question by multicast are waited for.
	answerPatience = time.Second
	// seenQuestions is how many questions a machine remembers, so as not to answer one twice.
	seenQuestions = 256
	// Agents answer after answerDelay at most, and of many only about fewAgents.
	answerDelay = 300 * time.Millisecond
	fewAgents   = 8
	// defaultPort is that of a machine to which no other was given.
	defaultPort = 6443
	// maxPorts is how many ports a question goes to.
	maxPorts = 4
)

// SearchOptions say how to look for the servers of a cluster whose addresses are not known any more.
type SearchOptions struct {
	// Packets is the machine's socket. No other reader may use it meanwhile.
	Packets net.PacketConn
	Keys    clusterconfig.GossipKeys
	// Links are the machine's that lead to others.
	Links func() ([]net.Interface, error)
	// Ports are those at which servers may listen besides the machine's own and the usual one.
	Ports []uint16
}

// Search asks the networks that the machine is on, once, and returns where servers are, as machines with the cluster's
// key say.
func Search(ctx context.Context, o SearchOptions) ([]netip.AddrPort, error) {
	s, err := seals(o.Keys)
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
	defer func() { _ = o.Packets.SetReadDeadline(time.Time{}) }() // the next reader waits as long as it likes
	defer context.AfterFunc(ctx, func() { _ = o.Packets.SetReadDeadline(time.Unix(1, 0)) })()
	if err := o.Packets.SetReadDeadline(time.Now().Add(answerPatience)); err != nil {
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
			continue // an answer by ICMP to something that was sent
		}
		if a, _, err := openSearch(s, buffer[:length]); err == nil && a.kind == kindAnswer && a.challenge == q.challenge {
			found = appendNew(found, a.servers)
		}
	}
}

// ports are those that questions go to: the usual one and the machine's own, whatever others are known, then the lowest
// of these.
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

// asker is how questions go to a machine's networks.
type asker interface {
	// send sends a datagram to the listeners at some ports, and returns how often.
	send(b []byte, ports []uint16) (int, error)
}

// resolver finds the addresses of a name: Go's own.
type resolver interface {
	LookupPort(ctx context.Context, network, service string) (int, error)
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// searcher asks and answers for a member.
type searcher struct {
	m        *Member
	n        asker
	resolver resolver

	mu    sync.Mutex
	seals []cipher.AEAD
	asked challenge // of the question that is open
	found []netip.AddrPort
	heard timers.Signal // an answer has come
	seen  []challenge
	may   allowance
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
	return &searcher{m: m, n: n, resolver: r, heard: timers.NewSignal()}
}

func (s *searcher) setKeys(keys clusterconfig.GossipKeys) error {
	ciphers, err := seals(keys)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seals = ciphers
	return nil
}

// Found are the servers that the last search found; none while nothing is searched for.
func (m *Member) Found() []netip.AddrPort {
	m.search.mu.Lock()
	defer m.search.mu.Unlock()
	return slices.Clone(m.search.found)
}

// reset drops what was found.
func (s *searcher) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found, s.asked = nil, challenge{}
}

// drop forgets an address without an answer: what is wrong must not stand in the way of what the next answer says.
func (s *searcher) drop(address netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found = slices.DeleteFunc(s.found, func(a netip.AddrPort) bool { return a == address })
}

// search asks for the addresses of names, and then the machine's networks, where servers are. It waits a moment for
// answers.
func (s *searcher) search(ctx context.Context) {
	found := resolve(ctx, s.resolver, s.m.o.Names)
	s.mu.Lock()
	s.found = appendNew(found, s.found[:min(len(s.found), maxFound)])
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
	var known []uint16
	for _, i := range s.m.Members() {
		known = append(known, i.Address.Port())
	}
	s.mu.Lock()
	s.asked = q.challenge
	s.mu.Unlock()
	if sent, err := s.n.send(datagram, ports(s.m.o.Packets, known)); sent == 0 {
		s.m.o.Logger.Debug("gossip: the multicast query was not sent", "error", err)
		return
	}
	select {
	case <-ctx.Done():
	case <-s.heard:
	case <-time.After(answerPatience):
	}
}

// receive takes a datagram of a search in. It returns what answers it, nil when there is no answer.
func (s *searcher) receive(b []byte, from net.Addr) func(closed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, seal, err := openSearch(s.seals, b)
	if err != nil {
		return nil
	}
	switch t.kind {
	case kindAnswer:
		if t.challenge == s.asked {
			s.found = appendNew(s.found, t.servers)
			s.heard.Send() // the notification is pending already
		}
	case kindQuestion:
		if t.challenge != s.asked && s.mayAnswer(t.challenge, from, time.Now()) {
			return func(closed <-chan struct{}) { s.answer(closed, seal, t.challenge, from) }
		}
	}
	return nil
}

// mayAnswer says whether a question is new and not one too many, of all or of its sender.
func (s *searcher) mayAnswer(c challenge, from net.Addr, now time.Time) bool {
	if slices.Contains(s.seen, c) {
		return false
	}
	var sender netip.Addr // of what is no UDP packet: all of those are one
	if u, ok := from.(*net.UDPAddr); ok {
		sender = u.AddrPort().Addr().Unmap()
	}
	if !s.may.allow(sender, now) {
		return false
	}
	s.seen = append(s.seen[max(0, len(s.seen)-seenQuestions+1):], c)
	return true
}

// answer tells who asked where servers are. A server answers at once. Of agents, which may be many, a few do, and not
// all at the same moment.
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
		s.m.o.Logger.Debug("gossip: a machine that searches for servers was not answered", "error", err)
	}
}

// resolve finds the addresses of names, each with a port; those that are addresses need no question.
func resolve(ctx context.Context, r resolver, names []string) []netip.AddrPort {
	ctx, cancel := context.WithTimeout(ctx, lookupPatience)
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
		ips, err := r.LookupNetIP(ctx, "ip", host) // an address needs no question
		if err != nil {
			continue
		}
		for _, ip := range ips {
			out = appendNew(out, []netip.AddrPort{netip.AddrPortFrom(ip.Unmap(), uint16(number))})
		}
	}
	return out
}

// Known are the addresses of those members that an earlier run knew, by its file.
func Known(file string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, k := range readKnown(file) {
		out = append(out, k.Address)
	}
	return out
}
