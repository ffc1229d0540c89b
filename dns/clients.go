// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
)

const (
	// clientsDirective names the plugin that answers the cluster only. It stands in every server block.
	clientsDirective = "coracle-clients"
	// addressesFor is how long the machine's own addresses are remembered: a foreign client may ask as often as it
	// likes.
	addressesFor = time.Second
	// maxRounds is how often one client may ask one question before it was answered. A client that asks again is a
	// resolver to which this one passes the question on, and which asks here: without a bound each question would go
	// round until memory or ports run out.
	maxRounds = 250
)

// clients is the directive with its arguments: the name by which a Server finds out that a resolver leads back to it,
// and whose questions are answered beside the machine's own.
func clients(o Options) string {
	words := []string{clientsDirective, loopName(o.id)}
	for _, p := range o.Clients {
		words = append(words, p.Masked().String())
	}
	return strings.Join(words, " ")
}

func loopName(id string) string { return id + ".loop.coracle.internal." }

// gate refuses questions from outside the cluster: a machine's address on a LAN is no open resolver.
type gate struct {
	next     plugin.Handler
	prefixes []netip.Prefix
	loop     string
	zone     string
	local    localAddresses
	rounds   rounds
}

func setupClients(c *caddy.Controller) error {
	g := &gate{zone: dnsserver.GetConfig(c).Zone}
	for c.Next() {
		args := c.RemainingArgs()
		if len(args) == 0 {
			return plugin.Error(clientsDirective, c.ArgErr())
		}
		g.loop = args[0]
		for _, a := range args[1:] {
			p, err := netip.ParsePrefix(a)
			if err != nil {
				return plugin.Error(clientsDirective, err)
			}
			g.prefixes = append(g.prefixes, p)
		}
	}
	dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
		g.next = next
		return g
	})
	return nil
}

// Name implements plugin.Handler.
func (g *gate) Name() string { return clientsDirective }

// answer answers a question, or lets those behind the gate do so.
func (g *gate) answer(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	state := request.Request{W: w, Req: r}
	from, err := netip.ParseAddr(state.IP())
	if err != nil || !g.admits(from.Unmap().WithZone("")) {
		return dns.RcodeRefused, nil
	}
	if state.Name() == g.loop {
		m := new(dns.Msg).SetReply(r)
		m.Answer = []dns.RR{&dns.TXT{
			Hdr: dns.RR_Header{Name: state.QName(), Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{g.loop},
		}}
		return dns.RcodeSuccess, w.WriteMsg(m)
	}
	q := round{from, state.Name(), state.QType()}
	if !g.rounds.begin(q) {
		return dns.RcodeServerFailure, fmt.Errorf("%s asks for %s again and again before it is answered: does a forward of the "+
			"configuration lead back here?", from, q.name)
	}
	defer g.rounds.end(q)
	return plugin.NextOrFailure(g.Name(), g.next, ctx, w, r)
}

// round is a question of a client.
type round struct {
	from netip.Addr
	name string
	kind uint16
}

// rounds are those that are not answered yet.
type rounds struct {
	mu  sync.Mutex
	all map[round]int
}

// begin says whether a question may be passed on. The caller that passes it on calls end afterwards.
func (r *rounds) begin(q round) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all[q] >= maxRounds {
		return false
	}
	if r.all == nil {
		r.all = map[round]int{}
	}
	r.all[q]++
	return true
}

func (r *rounds) end(q round) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all[q]--; r.all[q] <= 0 {
		delete(r.all, q)
	}
}

func (g *gate) admits(from netip.Addr) bool {
	if from.IsLoopback() {
		return true
	}
	for _, p := range g.prefixes {
		if p.Contains(from) {
			return true
		}
	}
	return g.local.has(from, time.Now())
}

// localAddresses are this machine's.
type localAddresses struct {
	mu   sync.Mutex
	read time.Time
	all  map[netip.Addr]bool
}

func (l *localAddresses) has(a netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil || now.Sub(l.read) > addressesFor || now.Before(l.read) {
		l.read, l.all = now, machineAddresses()
	}
	return l.all[a]
}

// machineAddresses reads them; none, if the kernel does not say.
func machineAddresses() map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return out
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out[p.Addr().Unmap()] = true
		}
	}
	return out
}

// leadsBack says whether a resolver on this machine hands a question to this Server. An error is that it has not
// answered.
func (s *Server) leadsBack(ctx context.Context, at netip.AddrPort) (bool, error) {
	c, name := &dns.Client{Timeout: s.o.probeTimeout}, loopName(s.o.id)
	r, _, err := c.ExchangeContext(ctx, new(dns.Msg).SetQuestion(name, dns.TypeTXT), at.String())
	if err != nil {
		return false, err
	}
	for _, rr := range r.Answer {
		if t, ok := rr.(*dns.TXT); ok && len(t.Txt) == 1 && t.Txt[0] == name {
			return true, nil
		}
	}
	return false, nil
}

// split parts resolvers into remote ones and those on this machine.
func split(resolvers []netip.AddrPort) (remote, here []netip.AddrPort) {
	own := machineAddresses()
	for _, r := range resolvers {
		if r.Addr().IsLoopback() || own[r.Addr()] {
			here = append(here, r)
		} else {
			remote = append(remote, r)
		}
	}
	return remote, here
}

// withoutLoops leaves out the resolvers on this machine that lead back here: each question would go round until nothing
// is left to ask with. One that does not answer, as on a machine that gives it no processor time, or this process, is
// what it was when it did, and is asked again soon. next is when to look again.
func (s *Server) withoutLoops(ctx context.Context, resolvers []netip.AddrPort) (out []netip.AddrPort, next time.Duration) {
	silent := false
	for _, r := range resolvers {
		loops := false
		if _, here := split([]netip.AddrPort{r}); len(here) > 0 {
			var err error
			if loops, err = s.leadsBack(ctx, r); err != nil {
				loops, silent = s.looped[r], true
			}
		}
		if !loops {
			delete(s.looped, r)
			out = append(out, r)
			continue
		}
		if !s.looped[r] {
			s.log.Error(fmt.Errorf("%s hands questions back to the cluster's DNS", r), "A resolver of this host is left out: what it is "+
				"asked comes back here and would go round for ever. "+
				"Have it ask a resolver outside, or name one with --resolv-conf; it is checked again every five minutes")
		}
		s.looped[r] = true
	}
	if !silent {
		s.soon = 0
		return out, loopEvery
	}
	s.soon = min(max(2*s.soon, loopSoon), loopEvery)
	return out, s.soon
}
