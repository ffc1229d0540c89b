// SPDX-License-Identifier: Apache-2.0

package resolvconf_test

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/coracle-k8s/coracle/internal/resolvconf"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

func TestLastSearchListCounts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	for text, want := range map[string]string{
		"nameserver 192.0.2.1\n": "", "search a b.c\n": "a b.c", "domain a\nsearch b\n": "b", "search a\ndomain b\n": "b", "search\n": "", "# search a\n": "",
	} {
		write(t, path, text)
		got, err := resolvconf.Search(path)
		testenv.True(t, err == nil && slices.Equal(got, strings.Fields(want)), "%q: %q, %v", text, got, err)
	}
}

// TestWildcardsAreFound: a domain below which a made-up name exists is found, at the first resolver that replies.
func TestWildcardsAreFound(t *testing.T) {
	netns.Require(t)
	pc := testenv.Must(net.ListenPacket("udp", "127.0.0.53:53"))(t)
	s := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		switch name := q.Question[0].Name; {
		case strings.HasSuffix(name, ".wild.example.") && q.Question[0].Qtype == dns.TypeA, strings.HasSuffix(name, ".six.example.") && q.Question[0].Qtype == dns.TypeAAAA:
			m.Answer = []dns.RR{testenv.Must(dns.NewRR(name + map[uint16]string{dns.TypeA: " A 192.0.2.1", dns.TypeAAAA: " AAAA 2001:db8::1"}[q.Question[0].Qtype]))(t)}
		case !strings.HasSuffix(name, ".wild.example.") && !strings.HasSuffix(name, ".six.example."):
			m.Rcode = dns.RcodeNameError
		}
		testenv.Check(t, w.WriteMsg(m))
	})}
	served := make(chan error, 1) // read in the clean-up only
	go func() { served <- s.ActivateAndServe() }()
	t.Cleanup(func() {
		testenv.Check(t, s.Shutdown())
		testenv.Check(t, <-served)
	})
	path := filepath.Join(t.TempDir(), "resolv.conf")
	const dead = "nameserver 127.0.0.54\n"
	for text, want := range map[string]string{
		"search honest.example wild.example six.example. .\n" + dead + "nameserver 127.0.0.53\n": "wild.example six.example",
		"search honest.example\nnameserver 127.0.0.53\n":                                         "",
		"nameserver 127.0.0.53\n": "",
	} {
		write(t, path, text)
		got, err := resolvconf.Wildcards(t.Context(), path)
		testenv.True(t, err == nil && slices.Equal(got, strings.Fields(want)), "%q: %q, %v", text, got, err)
	}
	write(t, path, "search wild.example\n"+dead)
	testenv.Fails(t, testenv.Err(resolvconf.Wildcards(t.Context(), path)), "no resolver replies")
}
