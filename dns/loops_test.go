// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestUnresponsiveResolverIsProbedAgain: a resolver that does not answer in time whether it leads back here is what it
// was when it did, and is asked again soon, less and less often while it is silent: the machine may give it no
// processor time for a while.
func TestUnresponsiveResolverIsProbedAgain(t *testing.T) {
	pc := testenv.Must(net.ListenPacket("udp", "127.0.0.1:0"))(t)
	var answer atomic.Pointer[string] // the text of its answers; nil: it does not answer
	resolver := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		text := answer.Load()
		if text == nil {
			return
		}
		m := new(dns.Msg).SetReply(r)
		m.Answer = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{*text}}}
		_ = w.WriteMsg(m)
	})}
	done := make(chan error, 1)
	go func() { done <- resolver.ActivateAndServe() }()
	defer func() {
		_ = resolver.Shutdown()
		testenv.Check(t, <-done)
	}()
	at := pc.LocalAddr().(*net.UDPAddr).AddrPort()
	s := &Server{o: Options{id: "one"}, log: klog.Background(), loopedResolvers: map[netip.AddrPort]bool{}}
	back, other := loopName("one"), "something else"
	for _, step := range []struct {
		what   string
		answer *string
		used   bool
		next   time.Duration
	}{
		{"nothing is known of it", nil, true, loopSoon},
		{"it is silent still", nil, true, 2 * loopSoon},
		{"it leads back", &back, false, loopEvery},
		{"it led back, and is silent", nil, false, loopSoon},
		{"and still is", nil, false, 2 * loopSoon},
		{"it does not any more", &other, true, loopEvery},
		{"it did not, and is silent", nil, true, loopSoon},
	} {
		answer.Store(step.answer)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond) // for what does not come
		if step.answer != nil {
			cancel()
			ctx, cancel = context.WithCancel(t.Context())
		}
		used, next := s.withoutLoops(ctx, []netip.AddrPort{at})
		cancel()
		if slices.Contains(used, at) != step.used || next != step.next {
			t.Errorf("%s: used %v, looked at again after %v; want %v, %v", step.what, used, next, step.used, step.next)
		}
	}
	answer.Store(nil)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var next time.Duration
	for range 20 {
		_, next = s.withoutLoops(ended, []netip.AddrPort{at})
	}
	testenv.Equal(t, next, loopEvery, "one that is silent for long is asked after")
}
