// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coredns/caddy/caddyfile"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// custom replaces the data of the ConfigMap; nil deletes it.
func (a *api) custom(data map[string]string) { a.settings.Set(CustomConfigMap, data) }

func TestCustomConfigMap(t *testing.T) {
	a := newAPI(t)
	a.namespace(t, "default")
	a.service(t, "web", "10.43.0.9")
	outside(t, "127.0.0.53:53", "192.0.2.53")
	run(t, a, nil)
	wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
	a.custom(map[string]string{
		"nas.override": "hosts {\n  192.0.2.99 nas.home\n  fallthrough\n}",
		"lab.server":   "lab:53 {\n  errors\n  cache 30\n  forward . 127.0.0.53\n}\ncorp.example corp2.example {\n  hosts {\n    192.0.2.97 x.corp.example\n  }\n}",
		"README":       "is none of ours",
	})
	wantAnswer(t, "nas.home", dns.TypeA, "192.0.2.99")
	wantAnswer(t, "x.lab", dns.TypeA, "192.0.2.53")
	wantAnswer(t, "x.corp.example", dns.TypeA, "192.0.2.97")
	wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")

	// Of two keys one is wrong: that one stays as it was, the other one changes.
	a.custom(map[string]string{
		"nas.override": "hosts {\n  192.0.2.96 nas.home\n  fallthrough\n}",
		"lab.server":   "lab:53 {\n  no-such-plugin\n}",
	})
	wantAnswer(t, "nas.home", dns.TypeA, "192.0.2.96")
	wantAnswer(t, "x.lab", dns.TypeA, "192.0.2.53")
	wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
	testenv.Eventually(t, 2*time.Minute, "an event names the key and the mistake", func() error {
		for _, e := range a.served() {
			if strings.Contains(e, "lab.server") && strings.Contains(e, "no-such-plugin") {
				return nil
			}
		}
		return fmt.Errorf("events: %q", a.served())
	})

	// Two keys that work by themselves and not together: the first of them applies.
	a.custom(map[string]string{
		"one.server": "twice:53 {\n  hosts {\n    192.0.2.95 x.twice\n  }\n}",
		"two.server": "twice:53 {\n  hosts {\n    192.0.2.94 x.twice\n  }\n}",
	})
	testenv.Eventually(t, 2*time.Minute, "an event says so", func() error {
		for _, e := range a.served() {
			if strings.Contains(e, "two.server is not used") {
				return nil
			}
		}
		return errors.New("none")
	})
	wantAnswer(t, "x.twice", dns.TypeA, "192.0.2.95")

	a.custom(nil)
	testenv.Eventually(t, 2*time.Minute, "what is taken out is gone", func() error {
		got, _, err := query("udp", "x.twice", dns.TypeA)
		if err == nil && len(got) > 0 {
			err = fmt.Errorf("%v", got)
		}
		return err
	})
	wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
}

// The plugin that watches a cluster by itself is linked in, and takes all that the process logs when it is set up, be
// it for a try: so it is found out before.
func TestCustomKubernetesPluginIsRefused(t *testing.T) {
	a := newAPI(t)
	a.namespace(t, "default")
	a.service(t, "web", "10.43.0.9")
	s := run(t, a, nil)
	wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9") // CoreDNS does not stop what has only just begun
	for name, text := range map[string]string{
		"a.override": "kubernetes other.local {\n  endpoint http://127.0.0.1:1\n}",
		"b.server":   "other.local {\n  errors\n  kubernetes other.local {\n    endpoint http://127.0.0.1:1\n  }\n}",
		"c.override": "coracle " + s.o.id + " other.local",
		"d.override": "coracle-clients x 0.0.0.0/0",
	} {
		if err := s.checkStart(&starting{anySocket: true}, nil, customConfig{name: text}); err == nil || !strings.Contains(err.Error(), "cannot be used here") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestServerBlockKeysAreNormalized(t *testing.T) {
	for key, want := range map[string]string{
		"lab": "lab:10053", "lab:53": "lab:10053", ".:53": ".:10053", ".": ".:10053", "dns://lab:53": "lab:10053", "lab:5300": "lab:5300",
		"10.0.0.0/8": "10.0.0.0/8:10053", "10.0.0.0/8:53": "10.0.0.0/8:10053", "tls://lab:853": "tls://lab:853", "fd00::/8": "fd00::/8:10053",
	} {
		testenv.Equal(t, onOurPort(key), want, "%s becomes", key)
	}
}

// What is written again means the same, whatever was quoted.
func TestDirectivesAreWrittenAgain(t *testing.T) {
	const text = ".:0 {\n hosts {\n  192.0.2.1 a b\n  fallthrough\n }\n rewrite name \"a b\" c\n rewrite name d \"e#f\"\n log . \"{remote} \\\"x\\\"\"\n}\n"
	parsed := testenv.Must(caddyfile.Parse("a", strings.NewReader(text), nil))(t)
	again := testenv.Must(caddyfile.Parse("a", strings.NewReader(".:0 {\n"+directives(parsed[0].Tokens).text()+"}\n"), nil))(t)
	for name, tokens := range parsed[0].Tokens {
		var was, is []string
		for i, token := range tokens {
			was = append(was, token.Text)
			if i < len(again[0].Tokens[name]) {
				is = append(is, again[0].Tokens[name][i].Text)
			}
		}
		testenv.True(t, strings.Join(was, "|") == strings.Join(is, "|"), "%s was\n%q and is\n%q", name, was, is)
	}
	b := blocks{main: map[string]string{}}
	testenv.Fails(t, b.parseSection(Options{}, "x.override", "}\nevil:53 {\n"), "an override leaves the block of the cluster")
}

// A client that is neither in the cluster nor on this machine is refused.
func TestGateAdmitsClusterAndHost(t *testing.T) {
	g := &gate{prefixes: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/48")}}
	g.local.addresses, g.local.readAt = map[netip.Addr]bool{netip.MustParseAddr("192.0.2.1"): true}, time.Now().Add(addressesFor/2)
	for a, want := range map[string]bool{
		"127.0.0.1": true, "::1": true, "10.42.7.9": true, "fd42::9": true, "192.0.2.1": true, "192.0.2.2": false, "10.43.0.1": false, "2001:db8::1": false,
	} {
		testenv.Equal(t, g.prefixAdmits(netip.MustParseAddr(a)), want, "%s:", a)
	}
}

// prefixAdmits is admits at a moment at which the machine's addresses need not be read.
func (g *gate) prefixAdmits(a netip.Addr) bool {
	g.local.readAt = time.Now()
	return g.admits(a)
}

// From a machine beside this one nothing is answered; what a pod asks is.
func TestForeignClientsAreRefused(t *testing.T) {
	lan, pod := netns.New(t), netns.New(t)
	lan.Link(t, "lan", "eth0", []string{"192.0.2.1/24"}, []string{"192.0.2.2/24"})
	pod.Link(t, "pod", "eth0", []string{"10.42.7.1/24"}, []string{"10.42.7.2/24"})
	a := newAPI(t)
	a.namespace(t, "default")
	a.service(t, "web", "10.43.0.9")
	run(t, a, func(o *Options) {
		o.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.42.7.1"), netip.MustParseAddr(listenAddr)}
		o.Clients = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}
	})
	wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
	ask := func(from *netns.NS, proto, at string) (rcode string, err error) {
		err = from.Do(func() error {
			c := &dns.Client{Net: proto, Timeout: 3 * time.Second}
			r, _, err := c.Exchange(new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA), fmt.Sprintf("%s:%d", at, Port))
			if err == nil {
				rcode = dns.RcodeToString[r.Rcode]
			}
			return err
		})
		return rcode, err
	}
	for _, proto := range []string{"udp", "tcp"} {
		testenv.Eventually(t, 2*time.Minute, "a machine of the LAN is refused by "+proto, func() error {
			rcode, err := ask(lan, proto, "192.0.2.1")
			if proto == "tcp" && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)) { // closed when it was accepted
				return nil
			}
			if err == nil && (rcode != "REFUSED" || proto == "tcp") {
				err = errors.New(rcode)
			}
			return err
		})
		testenv.Eventually(t, 2*time.Minute, "a pod is answered by "+proto, func() error {
			rcode, err := ask(pod, proto, "10.42.7.1")
			if err == nil && rcode != "NOERROR" {
				err = errors.New(rcode)
			}
			return err
		})
	}
}

// A resolver of the host that asks the cluster's DNS is left out; the others are asked.
func TestResolverThatAsksClusterDNSIsLeftOut(t *testing.T) {
	a := newAPI(t)
	a.namespace(t, "default")
	a.service(t, "web", "10.43.0.9")
	asked := relay(t, "127.0.0.52:53", listenAddr)
	outside(t, "127.0.0.53:53", "192.0.2.53")
	run(t, a, func(o *Options) {
		write(t, o.ResolvConf, "nameserver 127.0.0.52\nnameserver 127.0.0.53\n")
		o.probeTimeout = 2 * time.Minute // one that is late with its answer is asked other questions until it has answered
	})
	wantAnswer(t, "www.example.org", dns.TypeA, "192.0.2.53")
	for i := range 20 {
		wantAnswer(t, fmt.Sprintf("x%d.example.org", i), dns.TypeA, "192.0.2.53")
	}
	if n := asked(); n > 0 {
		t.Errorf("%d questions went to the resolver that leads back", n)
	}
}

// What lacks a brace is refused with the line, and does not take in what comes after it.
func TestMissingBraceIsRefused(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"a.override", "hosts {\n  192.0.2.1 a\n}", ""},
		{"a.override", "log", ""},
		{"a.override", "hosts {\n  192.0.2.1 a", "a.override:1: the { has no }"},
		{"a.override", "rewrite name a b\nhosts {\n  192.0.2.1 a\n}\n}", "a.override:5: there is nothing that this } ends"},
		{"a.server", "corp.example {\n  hosts {\n    192.0.2.1 a\n  }\n", "a.server:1: the { has no }"},
		{"a.server", "corp.example {\n  hosts {\n    192.0.2.1 a\n  }\n}\n}", "a.server:6: there is nothing that this } ends"},
	} {
		b := blocks{main: map[string]string{}}
		err := b.parseSection(Options{}, c.name, c.text)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s %q: %v, want %q", c.name, c.text, err, c.want)
		}
	}
}

// A forward of the operator's that leads back here: the question comes to an end.
func TestForwardToItself(t *testing.T) {
	a := newAPI(t)
	a.namespace(t, "default")
	a.service(t, "web", "10.43.0.9")
	run(t, a, nil)
	wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
	a.custom(map[string]string{"round.server": "round.example:53 {\n  forward . " + listenAddr + ":10053\n}\nhere.example:53 {\n  hosts {\n    192.0.2.97 x.here.example\n  }\n}"})
	wantAnswer(t, "x.here.example", dns.TypeA, "192.0.2.97") // the configuration is in force
	testenv.Eventually(t, 2*time.Minute, "a question that goes round is answered", func() error {
		_, rcode, err := query("udp", "x.round.example", dns.TypeA)
		if err == nil && rcode != "SERVFAIL" {
			err = errors.New(rcode)
		}
		return err
	})
}

// back is a next handler that asks the gate again.
type back struct {
	g     *gate
	depth int
}

func (b *back) Name() string { return "back" }

func (b *back) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	b.depth++
	return b.g.ServeDNS(ctx, w, r)
}

func TestRoundsAreBounded(t *testing.T) {
	g := &gate{}
	b := &back{g: g}
	g.next = b
	for range 2 { // nothing is left of the first time
		b.depth = 0
		rcode, err := g.ServeDNS(t.Context(), &test.ResponseWriter{RemoteIP: "127.0.0.1"}, new(dns.Msg).SetQuestion("x.example.", dns.TypeA))
		if rcode != dns.RcodeServerFailure || err == nil || b.depth != maxRounds || len(g.open.counts) > 0 {
			t.Errorf("%d rounds, %v, %v; left: %v", b.depth, dns.RcodeToString[rcode], err, g.open.counts)
		}
	}
}

// What was answered once is answered when the resolver does not any more.
func TestStaleAnswersServeUnavailableResolvers(t *testing.T) {
	var silent, asked atomic.Int64
	resolver(t, "127.0.0.53:53", func(w dns.ResponseWriter, q *dns.Msg) {
		if silent.Load() > 0 {
			asked.Add(1)
			return
		}
		reply(w, q, "192.0.2.53", 1)
	})
	a := newAPI(t)
	a.namespace(t, "default")
	run(t, a, func(o *Options) { write(t, o.ResolvConf, "nameserver 127.0.0.53\n") })
	wantAnswer(t, "old.example.org", dns.TypeA, "192.0.2.53")
	silent.Store(1)
	// The answer has run out when the resolver is asked for it again.
	testenv.Eventually(t, 2*time.Minute, "an answer that ran out is given, the resolver having been asked without an answer", func() error {
		before := asked.Load()
		got, rcode, err := query("udp", "old.example.org", dns.TypeA)
		switch {
		case err != nil:
			return err
		case rcode != "NOERROR" || !slices.Equal(got, []string{"192.0.2.53"}):
			return fmt.Errorf("%v (%s)", got, rcode)
		case asked.Load() == before:
			return errors.New("it is still fresh")
		}
		return nil
	})
	// A name that no client has asked for has no old answer.
	if got, rcode, err := query("udp", "new.example.org", dns.TypeA); len(got) > 0 || err == nil && rcode == "NOERROR" {
		t.Errorf("a name that was never answered: %v, %s, %v", got, rcode, err)
	}
}
