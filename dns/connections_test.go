// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// held are connections to the DNS that are not closed by their clients. Each asks a question once a second, since
// CoreDNS closes connections without one.
type held struct {
	question []byte
	asked    time.Time
	conns    []net.Conn
}

func (h *held) open(t *testing.T, from *netns.NS, at string, count int) {
	t.Helper()
	h.question = testenv.Must(new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA).Pack())(t)
	h.question = append([]byte{byte(len(h.question) >> 8), byte(len(h.question))}, h.question...)
	testenv.NoError(t, from.Do(func() error {
		for range count {
			c, err := net.DialTimeout("tcp", net.JoinHostPort(at, fmt.Sprint(Port)), time.Minute)
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = c.Close() }) // it may be closed already
			h.conns = append(h.conns, c)
			h.ask()
		}
		return nil
	}))
}

func (h *held) ask() {
	if time.Since(h.asked) < time.Second {
		return
	}
	for _, c := range h.conns {
		_, _ = c.Write(h.question) // the server may have closed it
	}
	h.asked = time.Now()
}

// serverConnections returns how many connections to the DNS its process has open.
func serverConnections(t *testing.T) (open int) {
	t.Helper()
	for line := range strings.Lines(string(testenv.Must(os.ReadFile("/proc/thread-self/net/tcp"))(t))) {
		f := strings.Fields(line)
		if strings.HasSuffix(f[1], fmt.Sprintf(":%04X", Port)) && (f[3] == "01" || f[3] == "08") { // established, or closed by the client
			open++
		}
	}
	return open
}

// TestConnectionsToDNSAreBounded: machines outside the cluster have no connection to its DNS, a pod has a hundred at
// most, all pods have no more than the memory allows, and names are resolved by TCP meanwhile.
func TestConnectionsToDNSAreBounded(t *testing.T) {
	lan, flood, other := netns.New(t), netns.New(t), netns.New(t)
	lan.Link(t, "lan", "eth0", []string{"192.0.2.1/24"}, []string{"192.0.2.2/24"})
	flood.Link(t, "pod1", "eth0", []string{"10.42.7.1/30"}, []string{"10.42.7.2/30"})
	other.Link(t, "pod2", "eth0", []string{"10.42.7.5/30"}, []string{"10.42.7.6/30"})
	a := newAPI(t)
	a.namespace(t, "default")
	a.service(t, "web", "10.43.0.9")
	const bound = maxPerClient + 20
	run(t, a, func(o *Options) {
		o.Addresses = nil
		for _, at := range []string{"192.0.2.1", "10.42.7.1", "10.42.7.5", listenAddr} {
			o.Addresses = append(o.Addresses, netip.MustParseAddr(at))
		}
		o.Clients = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}
		o.maxConnections = bound
	})
	wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
	resolves := func(when string) {
		t.Helper()
		testenv.Eventually(t, 2*time.Minute, "an answer by TCP "+when, func() error {
			return other.Do(func() error {
				c := &dns.Client{Net: "tcp", Timeout: 3 * time.Second}
				r, _, err := c.Exchange(new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA), fmt.Sprintf("10.42.7.5:%d", Port))
				if err == nil && (r.Rcode != dns.RcodeSuccess || len(r.Answer) != 1) {
					err = errors.New(dns.RcodeToString[r.Rcode])
				}
				return err
			})
		})
	}
	var all held
	bounded := func(who string, most int) {
		t.Helper()
		testenv.Eventually(t, 2*time.Minute, "no more connections than the bound", func() error {
			all.ask()
			if open := serverConnections(t); open > most {
				return fmt.Errorf("%s: %d connections are open, of at most %d", who, open, most)
			}
			return nil
		})
	}
	all.open(t, lan, "192.0.2.1", 3000)
	bounded("a machine of the LAN", 1) // one of a question that the test asks
	resolves("while a machine of the LAN connects")
	all.open(t, flood, "10.42.7.1", 3000)
	bounded("a pod", maxPerClient+1)
	resolves("while a pod holds connections")
	all.open(t, other, "10.42.7.5", maxPerClient)
	bounded("two pods", bound)
	resolves("while two pods hold connections")
}
