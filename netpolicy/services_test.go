// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/proxy"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/policymodel"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/uml"
)

// TestServiceTrafficIsJudgedByPolicies has policies judge what goes through Services, with either back end of the
// Service proxy: IPVS in a second kernel (docs/adr/0021).
func TestServiceTrafficIsJudgedByPolicies(t *testing.T) {
	t.Run("nftables", func(t *testing.T) { testServices(t, proxy.ModeNFTables) })
	t.Run("ipvs", func(t *testing.T) {
		if uml.Inside() {
			testServices(t, proxy.ModeIPVS)
			return
		}
		uml.Run(t, uml.WithNFTables(t, 40*time.Minute))
	})
}

func testServices(t *testing.T, mode string) {
	l := newServiceLab(t, mode)
	type subtest struct {
		name string
		run  func(*serviceLab, *testing.T)
	}
	subtests := []subtest{
		{"truth table", (*serviceLab).testTruth},
		{"revoked", (*serviceLab).testRevoked},
		{"the node", (*serviceLab).testNode},
		{"the cluster's DNS", (*serviceLab).testDNS},
	}
	if mode == proxy.ModeIPVS { // nftables translates no reset of a connection that there is not
		subtests = append(subtests, subtest{"resets of pods", (*serviceLab).testResets},
			subtest{"SCTP", (*serviceLab).testSCTP}) // which the guest's kernel has
	}
	for _, c := range subtests {
		t.Run(c.name, func(t *testing.T) {
			l.t = t
			l.Policies, l.model.Policies = nil, nil
			c.run(l, t)
		})
	}
}

// throughServices are policies in which it matters that a connection is judged as its endpoint gets it, and with who
// opened it.
var throughServices = []policymodel.Case{
	{Name: "egress to the networks of Services", Namespace: "x", Spec: `{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.43.0.0/16}}, {ipBlock: {cidr: "fd43::/64"}}, {ipBlock: {cidr: 198.18.0.0/16}}, {ipBlock: {cidr: "2001:db8::/32"}}]}], policyTypes: [Egress]}`},
	{Name: "egress to Services' ports", Namespace: "x", Spec: `{podSelector: {}, egress: [{ports: [{port: 1000, endPort: 65535}, {port: 1000, endPort: 65535, protocol: UDP}]}], policyTypes: [Egress]}`},
	{Name: "egress to endpoints", Namespace: "x", Spec: `{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.42.0.0/16}}, {ipBlock: {cidr: "fd00:42::/32"}}], ports: [{port: 80}, {port: 53, protocol: UDP}]}], policyTypes: [Egress]}`},
	{Name: "egress to another node's pods", Namespace: "x", Spec: `{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.42.2.0/24}}, {ipBlock: {cidr: "fd00:42:0:2::/64"}}]}], policyTypes: [Egress]}`},
	{Name: "from the address that masquerading gives", Namespace: "x", Spec: `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}, {ipBlock: {cidr: "2001:db8::1/128"}}, {ipBlock: {cidr: 10.43.0.0/16}}]}]}`},
	{Name: "from one client outside", Namespace: "x", Spec: `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.7/32}}, {ipBlock: {cidr: "2001:db8::7/128"}}]}]}`},
	{Name: "from pods alone, through masquerading too", Namespace: "x", Spec: `{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}`},
}

// testTruth tries connections through all kinds of Services' addresses, and compares with the model.
func (l *serviceLab) testTruth(t *testing.T) {
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	var tab table
	var allowed, denied [ways]int
	check := func(name string) {
		t.Helper()
		l.apply(&tab)
		l.truth(r, 40, &allowed, &denied)
		if t.Failed() {
			t.Fatalf("policies %q (seed %d)\n%s", name, seed, renderReplacement(tab.applied))
		}
	}
	for _, c := range slices.Concat(throughServices, policymodel.Listed()) {
		l.Policies = nil
		l.policy(t, c.Namespace, "p", c.Spec)
		check(c.Name)
	}
	for i := range 10 {
		l.Policies = nil
		for p := range 1 + r.IntN(6) {
			l.add(generate(r, fmt.Sprint("p", p)))
		}
		check(fmt.Sprint("generated ", i))
	}
	l.Policies, l.model.Policies = nil, nil
	check("none")
	for w := range ways {
		t.Logf("by %s %d connections were allowed and %d refused", w, allowed[w], denied[w])
		testenv.False(t, allowed[w] == 0 || denied[w] == 0, "by %s this proves nothing", w)
	}
}

// truth makes n attempts, which chance picks.
func (l *serviceLab) truth(r *rand.Rand, n int, allowed, denied *[ways]int) {
	l.t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	several := make(chan struct{}, 16) // as many connections at a time
	for range n {
		a := l.attempt(r)
		several <- struct{}{}
		wg.Go(func() {
			defer func() { <-several }()
			want := l.allowed(a.connection)
			err := l.tryAt(a.connection, a.at)
			mu.Lock()
			defer mu.Unlock()
			if want && err != nil || !want && !errors.Is(err, errRefused) {
				l.t.Errorf("%v to %v %v %d by %s %v: %v; allowed: %v", a.from, a.to, a.proto, a.port, a.way, a.at, err, want)
			}
			if want {
				allowed[a.way]++
			} else {
				denied[a.way]++
			}
		})
	}
	wg.Wait()
}

// openAt makes a connection that stays.
func (l *serviceLab) openAt(t *testing.T, c connection, at netip.AddrPort) net.Conn {
	t.Helper()
	var conn net.Conn
	err := l.ns[c.from].Do(func() (err error) {
		d := net.Dialer{LocalAddr: local(c), Timeout: patience}
		conn, err = d.Dial(strings.ToLower(string(c.proto)), at.String())
		return err
	})
	if err == nil {
		err = ping(conn)
	}
	testenv.NoError(t, err, "%v to %v", c.from, at)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// testRevoked forbids open connections: both ends have to hear of it, others nothing.
func (l *serviceLab) testRevoked(t *testing.T) {
	for w := range ways {
		for _, family := range []int{4, 6} {
			for _, d := range []struct{ name, namespace, spec string }{
				{"by the server", "y", `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`},
				{"by the client", "x", `{podSelector: {}, egress: [{to: [{podSelector: {}}]}], policyTypes: [Egress]}`},
			} {
				t.Run(fmt.Sprintf("%s IPv%d %s", w, family, d.name), func(t *testing.T) {
					l.t = t
					l.revoke(t, w, family, d.namespace, d.spec)
				})
			}
		}
	}
}

func (l *serviceLab) revoke(t *testing.T, w way, family int, namespace, spec string) {
	var tab table
	l.Policies, l.model.Policies = nil, nil
	l.policy(t, "x", "a", `{podSelector: {}, ingress: [{}], egress: [{to: [{podSelector: {}}]}, {to: [{namespaceSelector: {}}]}], policyTypes: [Ingress, Egress]}`)
	l.policy(t, "y", "a", `{podSelector: {}, ingress: [{from: [{podSelector: {}}, {namespaceSelector: {}}, {ipBlock: {cidr: 203.0.113.0/24}}, {ipBlock: {cidr: "2001:db8::7/128"}}]}]}`)
	l.apply(&tab)
	client, server, same := l.addressOf("x", "p0", family), l.addressOf("y", "p0", family), l.addressOf("x", "p1", family)
	outsider := outside[0]
	if family == 6 {
		outsider = outside[2]
	}
	open := func(from, to netip.Addr, proto corev1.Protocol, port int32) net.Conn {
		c := connection{from, to, proto, port}
		return l.openAt(t, c, l.at(w, c))
	}
	tcp, udp := open(client, server, corev1.ProtocolTCP, 80), open(client, server, corev1.ProtocolUDP, 53)
	stays, self := open(client, same, corev1.ProtocolTCP, 80), open(client, client, corev1.ProtocolTCP, 80)
	foreign := open(outsider, server, corev1.ProtocolTCP, 80)
	l.Policies = nil
	l.policy(t, namespace, "a", spec)
	l.apply(&tab)
	testenv.ErrorIs(t, ping(tcp), errRefused, "the TCP connection that is forbidden now")
	testenv.ErrorIs(t, ping(udp), errRefused, "the UDP flow that is forbidden now")
	if err := ping(foreign); (namespace == "y") != errors.Is(err, errRefused) {
		t.Errorf("the connection from outside: %v", err)
	}
	testenv.Check(t, errors.Join(ping(stays), ping(self)), "connections that are still allowed")
	l.Policies = nil
	l.apply(&tab)
	again := connection{client, server, corev1.ProtocolTCP, 80}
	testenv.Check(t, errors.Join(ping(stays), l.tryAt(again, l.at(w, again)), ping(udp)), "without policies")
}

// testNode: what the node itself sends reaches every pod of its own, through Services too.
func (l *serviceLab) testNode(t *testing.T) {
	var tab table
	for _, namespace := range []string{"x", "y", "z"} {
		l.policy(t, namespace, "p", `{podSelector: {}, policyTypes: [Ingress, Egress]}`)
	}
	l.apply(&tab)
	for w := range ways {
		for _, b := range l.Sandboxes {
			for _, ip := range b.IPs {
				for _, p := range offered {
					at := l.at(w, connection{to: ip, proto: p.Protocol, port: p.TargetPort.IntVal})
					conn, err := net.DialTimeout(strings.ToLower(string(p.Protocol)), at.String(), patience)
					if err == nil {
						err = ping(conn)
						conn.Close()
					}
					testenv.Check(t, err, "the node does not reach %v by %s %v", ip, w, at)
				}
			}
		}
	}
}

// testDNS: pods reach the node's own by its Service, as policies say.
func (l *serviceLab) testDNS(t *testing.T) {
	l.serve(netns.Own{}, dnsTarget)
	var tab table
	for _, c := range []struct {
		name, spec string
		tcp, udp   bool
	}{
		{"nothing", `{podSelector: {}, policyTypes: [Ingress, Egress]}`, false, false},
		{"as everybody writes it", `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}, {port: 53}]}]}`, true, true},
		{"by UDP alone", `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}]}]}`, false, true},
		{"no egress policy", `{podSelector: {}, policyTypes: [Ingress]}`, true, true},
	} {
		l.Policies = nil
		l.policy(t, "x", "p", c.spec)
		l.apply(&tab)
		for i, dns := range dnsIPs {
			from := l.addressOf("x", "p0", []int{4, 6}[i])
			for proto, want := range map[corev1.Protocol]bool{corev1.ProtocolTCP: c.tcp, corev1.ProtocolUDP: c.udp} {
				err := l.tryAt(connection{from: from, to: dns, proto: proto, port: dnsPort}, netip.AddrPortFrom(dns, dnsPort))
				testenv.False(t, want && err != nil || !want && !errors.Is(err, errRefused),
					"%s: %v at %v: %v; allowed: %v", c.name, proto, dns, err, want)
			}
		}
	}
}

// testSCTP: a policy with a port of SCTP admits that, and refuses other ports, other clients and other protocols.
func (l *serviceLab) testSCTP(t *testing.T) {
	var tab table
	meets := func(from, to netip.Addr, port uint16, want error) {
		t.Helper()
		_, err := netns.AskSCTP(l.ns[from], netip.AddrPortFrom(to, port))
		if err = refused(err); !errors.Is(err, want) {
			t.Errorf("%v to %v port %d by SCTP: %v, want %v", from, to, port, err, want)
		}
	}
	for _, family := range []int{4, 6} {
		server, client, outsider := l.addressOf("x", "p0", family), l.addressOf("y", "p0", family), l.addressOf("z", "p0", family)
		for _, port := range []uint16{80, 81} {
			netns.ServeSCTP(t, l.ns[server], "server", netip.AddrPortFrom(server, port))
		}
		l.Policies = nil
		l.policy(t, "x", "p", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: "y"}}}], ports: [{port: 81, protocol: SCTP}]}]}`)
		l.apply(&tab)
		meets(client, server, 81, nil)
		meets(client, server, 80, errRefused)
		meets(outsider, server, 81, errRefused)
		testenv.ErrorIs(t, l.try(connection{client, server, corev1.ProtocolTCP, 81}), errRefused, "%v to %v by TCP", client, server)
		l.Policies = nil
		l.apply(&tab)
		meets(outsider, server, 80, nil)
	}
}
