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

	"github.com/coracle-k8s/coracle/internal/convert"
)

const (
	// clientsDirective names the plugin that serves only the cluster. Every server block has it.
	clientsDirective = "coracle-clients"
	// addressesFor is how long the machine's own addresses are cached: a foreign client may send queries as often as it
	// likes.
	addressesFor = time.Second
	// maxRounds limits how many queries for one question a client may have open. Such a client is a resolver to which
	// this one forwards the question and which forwards it back here. Without a limit each question would be forwarded
	// until memory or ports run out.
	maxRounds = 250
)

// clientsLine returns the directive with its arguments: the name by which a Server detects that a resolver leads back
// to it, and the networks whose queries are answered beside the machine's own.
func clientsLine(o Options) string {
	return strings.Join(append([]string{clientsDirective, loopName(o.id)}, networks(o)...), " ")
}

// networks returns the cluster's networks as arguments of a directive.
func networks(o Options) []string {
	return convert.Slice(o.Clients, func(p netip.Prefix) string { return p.Masked().String() })
}

func loopName(id string) string { return id + ".loop.coracle.internal." }

// gate refuses queries from outside the cluster: a machine's address on a LAN must not be an open resolver.
type gate struct {
	next     plugin.Handler
	prefixes []netip.Prefix
	loop     string
	zone     string
	local    localAddresses
	open     openQuestions
}

func setupClients(c *caddy.Controller) error {
	g := &gate{zone: dnsserver.GetConfig(c).Zone}
	for c.Next() {
		args := c.RemainingArgs()
		if len(args) == 0 {
			return plugin.Error(clientsDirective, c.ArgErr())
		}
		g.loop = args[0]
		if err := g.admit(args[1:]); err != nil {
			return plugin.Error(clientsDirective, err)
		}
	}
	if known, ok := starts.Load(g.loop); ok {
		known.(*starting).checkAtStartup(c)
	}
	dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
		g.next = next
		return g
	})
	return nil
}

// admit adds networks whose queries are answered.
func (g *gate) admit(networks []string) error {
	for _, n := range networks {
		p, err := netip.ParsePrefix(n)
		if err != nil {
			return err
		}
		g.prefixes = append(g.prefixes, p)
	}
	return nil
}

// Name implements plugin.Handler.
func (g *gate) Name() string { return clientsDirective }

// answer answers a query, or passes it to the plugins behind the gate.
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
	q := question{from, state.Name(), state.QType()}
	if !g.open.add(q) {
		return dns.RcodeServerFailure, fmt.Errorf("%s asks for %s again and again before it is answered: does a forward of the "+
			"configuration lead back here?", from, q.name)
	}
	defer g.open.remove(q)
	return plugin.NextOrFailure(g.Name(), g.next, ctx, w, r)
}

// question identifies a query: its client, its name and its type.
type question struct {
	client netip.Addr
	name   string
	kind   uint16
}

// openQuestions counts equal queries that have no answer yet, to detect a loop of forwards.
type openQuestions struct {
	mu     sync.Mutex
	counts map[question]int
}

// add reports whether a question may be forwarded. If so, the caller has to call remove afterwards.
func (r *openQuestions) add(q question) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts[q] >= maxRounds {
		return false
	}
	if r.counts == nil {
		r.counts = map[question]int{}
	}
	r.counts[q]++
	return true
}

func (r *openQuestions) remove(q question) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts[q]--; r.counts[q] <= 0 {
		delete(r.counts, q)
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
	return g.local.contains(from, time.Now())
}

// localAddresses caches this machine's addresses.
type localAddresses struct {
	mu        sync.Mutex
	readAt    time.Time
	addresses map[netip.Addr]bool
}

func (l *localAddresses) contains(a netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.addresses == nil || now.Sub(l.readAt) > addressesFor || now.Before(l.readAt) {
		l.readAt, l.addresses = now, machineAddresses()
	}
	return l.addresses[a]
}

// machineAddresses reads them. It returns none if the kernel fails to list them.
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

// leadsBack reports whether a resolver on this machine forwards queries to this Server. An error means that it did not
// reply.
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

// splitResolvers separates remote resolvers from those on this machine.
func splitResolvers(resolvers []netip.AddrPort) (remote, here []netip.AddrPort) {
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

// withoutLoops removes the resolvers on this machine that lead back here: each query would be forwarded until no
// resources are left. A resolver may fail to reply, as when this machine gives it, or this process, no processor time.
// Its last known result is used then, and it is checked again soon. next is the time until the next check.
func (s *Server) withoutLoops(ctx context.Context, resolvers []netip.AddrPort) (out []netip.AddrPort, next time.Duration) {
	silent := false
	for _, r := range resolvers {
		loops := false
		if _, here := splitResolvers([]netip.AddrPort{r}); len(here) > 0 {
			var err error
			if loops, err = s.leadsBack(ctx, r); err != nil {
				loops, silent = s.loopedResolvers[r], true
			}
		}
		if !loops {
			delete(s.loopedResolvers, r)
			out = append(out, r)
			continue
		}
		if !s.loopedResolvers[r] {
			s.log.Error(fmt.Errorf("%s hands questions back to the cluster's DNS", r), "A resolver of this host is left out: what it is "+
				"asked comes back here and would go round for ever. "+
				"Have it ask a resolver outside, or name one with --resolv-conf; it is checked again every five minutes")
		}
		s.loopedResolvers[r] = true
	}
	if !silent {
		s.retryAfter = 0
		return out, loopEvery
	}
	s.retryAfter = min(max(2*s.retryAfter, loopSoon), loopEvery)
	return out, s.retryAfter
}
