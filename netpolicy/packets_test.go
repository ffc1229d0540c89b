// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/policymodel"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// patience is for what has to happen; nothing waits so long for what must not happen, since refusals are answers.
const patience = 2 * time.Minute

// The Ethernet addresses of both ends of every link.
var hostMAC, podMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}

var errRefused = errors.New("refused")

// TestConnectionsMatchPolicies opens real connections between a dozen pods, over the listed policies and generated
// ones.
func TestConnectionsMatchPolicies(t *testing.T) {
	w := dozen()
	for i, p := range w.Pods { // all on this node: those of others are not there
		if p.Spec.NodeName != w.Node {
			ips := []netip.Addr{netip.MustParseAddr(fmt.Sprint("10.42.1.", 100+i)), netip.MustParseAddr(fmt.Sprintf("fd00:42:0:1::%x", 100+i))}
			for _, old := range p.Status.PodIPs {
				delete(w.model.Pods, netip.MustParseAddr(old.IP))
			}
			p.Spec.NodeName, p.Status.PodIP = w.Node, ips[0].String()
			p.Status.PodIPs = []corev1.PodIP{{IP: ips[0].String()}, {IP: ips[1].String()}}
			w.Sandboxes = append(w.Sandboxes, Sandbox{ID: p.Namespace + p.Name + "_eth0", Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), IPs: ips})
			w.model.Pods[ips[0]], w.model.Pods[ips[1]] = p, p
		}
	}
	l := newLab(t, w)
	l.plugProxies()
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	var tab table
	allowed, denied := 0, 0
	check := func(name string, share int) {
		t.Helper()
		l.apply(&tab)
		testenv.True(t, tab.intact(), "%s: the table is not counted as whole", name)
		a, d := l.truth(r, share)
		allowed, denied = allowed+a, denied+d
		if t.Failed() {
			t.Fatalf("policies %q (seed %d)\n%s", name, seed, renderReplacement(tab.applied))
		}
	}
	for _, c := range policymodel.Listed() {
		l.Policies = nil
		l.policy(t, c.Namespace, "p", c.Spec)
		check(c.Name, 12)
	}
	for i := range 15 {
		l.Policies = nil
		for p := range 1 + r.IntN(6) {
			l.add(generate(r, fmt.Sprint("p", p)))
		}
		check(fmt.Sprint("generated ", i), 8)
	}
	l.Policies, l.model.Policies = nil, nil
	check("none", 12)
	if ok, err := nft.Exists(kernelTable); ok || err != nil {
		t.Errorf("a table without policies: %v, %v", ok, err)
	}
	t.Logf("%d connections were allowed and %d refused", allowed, denied)
	testenv.False(t, allowed == 0 || denied == 0, "this proves nothing")
}

// TestRevokedConnectionsAreReset opens connections and forbids them by a policy: who sends something has to hear of it,
// the others nothing.
func TestRevokedConnectionsAreReset(t *testing.T) {
	l := newLab(t, dozen())
	for _, d := range revoking {
		for _, family := range []int{4, 6} {
			t.Run(fmt.Sprint(d.name, family), func(t *testing.T) {
				var tab table
				l.Policies, l.model.Policies = nil, nil
				l.policy(t, "x", "a", `{podSelector: {}, ingress: [{}], egress: [{to: [{podSelector: {}}]}, {to: [{namespaceSelector: {}}]}], policyTypes: [Ingress, Egress]}`)
				l.policy(t, "y", "a", `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}, {from: [{namespaceSelector: {}}]}]}`)
				l.apply(&tab)
				from, to, same := l.addressOf("x", "p0", family), l.addressOf("y", "p0", family), l.addressOf("x", "p1", family)
				open := func(c connection) net.Conn {
					var conn net.Conn
					err := l.ns[c.from].Do(func() (err error) {
						conn, err = net.DialTimeout(strings.ToLower(string(c.proto)), netip.AddrPortFrom(c.to, uint16(c.port)).String(), patience)
						return err
					})
					if err == nil {
						err = ping(conn)
					}
					testenv.NoError(t, err)
					t.Cleanup(func() { conn.Close() })
					return conn
				}
				tcp, udp := open(connection{from, to, corev1.ProtocolTCP, 80}), open(connection{from, to, corev1.ProtocolUDP, 53})
				stays, self := open(connection{from, same, corev1.ProtocolTCP, 80}), open(connection{from, from, corev1.ProtocolTCP, 80})
				l.Policies = nil
				l.policy(t, d.namespace, "a", d.spec)
				l.apply(&tab)
				testenv.ErrorIs(t, ping(tcp), errRefused, "the TCP connection that is forbidden now")
				testenv.ErrorIs(t, ping(udp), errRefused, "the UDP flow that is forbidden now")
				testenv.Check(t, errors.Join(ping(stays), ping(self)), "connections that are still allowed")
				l.Policies = nil
				l.apply(&tab)
				testenv.Check(t, errors.Join(ping(stays), l.try(connection{from, to, corev1.ProtocolTCP, 80}), ping(udp)), "without policies")
			})
		}
	}
}

// TestNodeReachesItsPods: a node reaches its own pods always, and is reached by them as policies say; the cluster's DNS
// among that.
func TestNodeReachesItsPods(t *testing.T) {
	l := newLab(t, dozen())
	node := netip.MustParseAddr("192.0.2.1")
	l.ofNode(t, node)
	for _, port := range []int{10053, 10250} {
		netns.Serve(t, netns.Own{}, "node", "tcp", fmt.Sprintf("%s:%d", node, port))
	}
	l.DNS = DNS{Servers: []netip.AddrPort{netip.AddrPortFrom(node, 10053)}, Service: []netip.Addr{netip.MustParseAddr("10.43.0.10")}}
	pod := l.addressOf("x", "p0", 4)
	reach := func(port int32) error {
		var conn net.Conn
		err := l.ns[pod].Do(func() (err error) {
			conn, err = net.DialTimeout("tcp", fmt.Sprintf("%s:%d", node, port), patience)
			return err
		})
		if err == nil {
			conn.Close()
		}
		return refused(err)
	}
	var tab table
	for _, c := range []struct {
		name, spec string
		dns, other bool
	}{
		{"nothing", `{podSelector: {}, policyTypes: [Ingress, Egress]}`, false, false},
		{"DNS as everybody writes it", `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}, {port: 53}]}]}`, true, false},
		{"DNS by UDP alone", `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}]}]}`, false, false},
		{"the node", `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: 10250}]}]}`, false, true},
		{"no egress policy", `{podSelector: {}, policyTypes: [Ingress]}`, true, true},
	} {
		l.Policies = nil
		l.policy(t, "x", "p", c.spec)
		l.apply(&tab)
		for port, want := range map[int32]bool{10053: c.dns, 10250: c.other} {
			if err := reach(port); want != (err == nil) || err != nil && !errors.Is(err, errRefused) {
				t.Errorf("%s: port %d of the node: %v; allowed: %v", c.name, port, err, want)
			}
		}
		conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(pod, 80).String(), patience)
		if err == nil {
			err = ping(conn)
			conn.Close()
		}
		testenv.Check(t, err, "%s: the node does not reach its pod", c.name)
	}
}

// TestDifferencesLeaveNoGap changes policies while connections are opened that are forbidden throughout.
func TestDifferencesLeaveNoGap(t *testing.T) {
	l := newLab(t, dozen())
	var tab table
	change := func(i int) {
		l.Policies = nil
		l.policy(t, "x", "deny", `{podSelector: {}, policyTypes: [Ingress, Egress]}`)
		l.policy(t, "x", "other", fmt.Sprintf(`{podSelector: {}, ingress: [{ports: [{port: %d}]}]}`, 9000+i))
		if i%5 == 4 {
			tab.applied = nil // as after a restart: all is written
		}
		l.apply(&tab)
	}
	change(0)
	done := make(chan struct{})
	var wg sync.WaitGroup
	tries := 0
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			c := connection{l.addressOf("y", "p0", 4), l.addressOf("x", "p0", 4), corev1.ProtocolTCP, 80}
			testenv.ErrorIs(t, l.try(c), errRefused, "a forbidden connection while policies change")
			tries++
		}
	})
	for i := range 40 {
		change(i)
	}
	close(done)
	wg.Wait()
	testenv.True(t, tries != 0, "this proves nothing")
	t.Logf("%d attempts over 40 changes", tries)
}

// TestForeignTableChangesAreDetected has another program change the table in every way.
func TestForeignTableChangesAreDetected(t *testing.T) {
	l := newLab(t, dozen())
	l.policy(t, "x", "p", `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}}, {ipBlock: {cidr: 10.0.0.0/8}}]}]}`)
	for _, change := range []string{
		"delete table inet coracle-policy",
		"flush ruleset",
		"flush table inet coracle-policy",
		"flush chain inet coracle-policy forward",
		"flush chain inet coracle-policy refuse",
		"flush map inet coracle-policy in4",
		"delete element inet coracle-policy in6 { " + l.addressOf("x", "p1", 6).String() + " }",
	} {
		var tab table
		l.apply(&tab)
		testenv.Require(t, tab.intact(), "the table is not counted as whole")
		testenv.NoError(t, run(t.Context(), []byte(change)))
		testenv.False(t, tab.intact(), "not noticed: %s", change)
		l.apply(&tab)
		testenv.Check(t, l.try(connection{l.addressOf("y", "p0", 4), l.addressOf("x", "p0", 4), corev1.ProtocolTCP, 80}), "after %q was mended", change)
		testenv.ErrorIs(t, l.try(connection{l.addressOf("y", "p0", 6), l.addressOf("x", "p0", 6), corev1.ProtocolTCP, 80}), errRefused, "after %q was mended, a forbidden connection", change)
	}
}

// TestKernelAcceptsGeneratedTables: the kernel takes every table that policies can lead to, whole and as a change of
// the one before.
func TestKernelAcceptsGeneratedTables(t *testing.T) {
	namespaceTable(t)
	seed := testenv.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	var changes table
	for i := range 40 {
		w := dozen()
		w.shake(r)
		for p := range 1 + r.IntN(6) {
			w.add(generate(r, fmt.Sprint("p", p)))
		}
		to := Desired(w.State, DefaultLimits()).Ruleset
		if changes.applied == nil {
			changes.applied = newRuleset()
		}
		testenv.NoError(t, run(t.Context(), changeCommands(changes.applied, to)), "case %d of seed %d, as a change", i, seed)
		changes.applied = to
		testenv.Require(t, changes.intact(), "case %d of seed %d, as a change: it is not counted as whole", i, seed)
		whole := table{}
		if err := whole.apply(t.Context(), to); err != nil || !whole.intact() {
			t.Fatalf("case %d of seed %d, whole: %v, counted as such: %v", i, seed, err, whole.intact())
		}
	}
}
