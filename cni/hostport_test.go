// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestHostPortLeadsToItsPod(t *testing.T) {
	n := newNode(t, "10.42.0.0/16").ready("10.42.7.0/24")
	a := n.pod("aaa")
	b := n.pod("bbb",
		PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"},
		PortMapping{HostPort: 8081, ContainerPort: 80, Protocol: "TCP", HostIP: nodeAddr},
		PortMapping{HostPort: 8082, ContainerPort: 80, HostIP: "127.0.0.1"},
		PortMapping{HostPort: 0, ContainerPort: 80, Protocol: "tcp"},
		PortMapping{HostPort: 8080, ContainerPort: 53, Protocol: "udp"},
	)
	serve(t, b, "b", "tcp", ":80")
	expect(t, n.outside, "outside", nodeAddr+":8080", "b "+outsideAddr)
	expect(t, n.outside, "outside, hostIP", nodeAddr+":8081", "b "+outsideAddr)
	expect(t, a, "other pod", nodeAddr+":8080", "b "+a.ips[0])
	expect(t, a, "other pod by the gateway", "10.42.7.1:8080", "b "+a.ips[0])
	expect(t, b, "hairpin", nodeAddr+":8080", "b "+nodeAddr)
	expect(t, here{}, "node", nodeAddr+":8080", "b "+nodeAddr)
	expect(t, here{}, "node by loopback", "127.0.0.1:8080", "b "+nodeAddr)
	expect(t, here{}, "node by loopback, hostIP", "127.0.0.1:8082", "b "+nodeAddr)
	refuse(t, here{}, "port of another hostIP", nodeAddr+":8082")
	refuse(t, n.outside, "port of another hostIP", nodeAddr+":8082")

	n.stop()
	expect(t, n.outside, "outside while the agent is down", nodeAddr+":8080", "b "+outsideAddr)
	netns.NFT(t, "delete table inet coracle") // a program flushed the ruleset, or the host restarted its firewall
	refuse(t, n.outside, "outside without table", nodeAddr+":8080")
	n.start()
	n.waitReady()
	eventually(t, func() error { _, err := ask(n.outside, nodeAddr+":8080"); return err })

	netns.NFT(t, "flush ruleset")
	eventually(t, func() error { _, err := ask(n.outside, nodeAddr+":8080"); return err })

	n.del(b)
	if out := netns.NFT(t, "list table inet coracle"); strings.Contains(out, b.ips[0]) {
		t.Errorf("the table still names the deleted pod:\n%s", out)
	}
	refuse(t, n.outside, "deleted", nodeAddr+":8080")
}

// TestOwnListenersKeepTheirConnections: what host processes send to a listener of the cluster's own at loopback never
// goes to a pod, not even to one that had the port first.
func TestOwnListenersKeepTheirConnections(t *testing.T) {
	n := newNode(t, "10.42.0.0/16").ready("10.42.7.0/24")
	own, stub := netip.AddrPortFrom(clusterconfig.Loopback, 8081).String(), "127.0.0.53:8081" // where systemd-resolved listens
	p := n.pod("aaa", PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}, PortMapping{HostPort: 8081, ContainerPort: 80, Protocol: "tcp"})
	serve(t, p, "pod", "tcp", ":80")
	serve(t, here{}, "node", "tcp", "127.0.0.1:8080")
	serve(t, here{}, "node", "tcp", own)
	serve(t, here{}, "node", "tcp", stub)
	expect(t, here{}, "a port of no other program", "127.0.0.1:8081", "pod "+nodeAddr)
	expect(t, here{}, "the own loopback address", own, "node 127.0.0.1")
	expect(t, here{}, "another loopback address", stub, "node 127.0.0.1")

	n.stop()
	n.o.ReservedPorts = []uint16{6443, 8080}
	expect(t, here{}, "a port that was not reserved by the run before", "127.0.0.1:8080", "pod "+nodeAddr)
	for range 2 {
		testenv.NoError(t, ProtectOwnConnections(t.Context(), n.o.ReservedPorts))
		expect(t, here{}, "the same port before the network starts", "127.0.0.1:8080", "node 127.0.0.1")
		expect(t, here{}, "a port of no other program, before the network starts", "127.0.0.1:8081", "pod "+nodeAddr)
	}
	early := netns.NFT(t, "list chain inet coracle nat-output")
	n.start()
	testenv.Until(t, 2*time.Minute, "the network has started", n.server.Ready)
	expect(t, here{}, "a reserved port at loopback", "127.0.0.1:8080", "node 127.0.0.1")
	if late := netns.NFT(t, "list chain inet coracle nat-output"); late != early {
		t.Errorf("before the network starts the chain is\n%s\nand afterwards\n%s", early, late)
	}
	expect(t, n.outside, "outside, a port that was the pod's before it was reserved", nodeAddr+":8080", "pod "+outsideAddr)
	n.stop()
	netns.NFT(t, "delete table inet coracle")
	testenv.Check(t, ProtectOwnConnections(t.Context(), n.o.ReservedPorts), "without a table")
}

// A sender that never pauses must reach the pod that has the port now, not the one that had it.
func TestUDPHostPortFollowsThePod(t *testing.T) {
	n := newNode(t, "10.42.0.0/16").ready("10.42.7.0/24")
	var client net.Conn
	testenv.NoError(t, n.outside.Do(func() (err error) {
		client, err = net.Dial("udp", nodeAddr+":5353")
		return err
	}))
	defer client.Close()
	echo := func(want string) {
		t.Helper()
		eventually(t, func() error {
			if _, err := client.Write([]byte("?")); err != nil && want == "" {
				return nil // refused: no pod has the port
			}
			_ = client.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			buf := make([]byte, 16)
			k, err := client.Read(buf)
			if got := string(buf[:k]); got != want {
				return fmt.Errorf("got %q, want %q: %w", got, want, err)
			}
			return nil
		})
	}
	echo("")
	for _, name := range []string{"one", "two"} {
		p := n.pod(name, PortMapping{HostPort: 5353, ContainerPort: 53, Protocol: "udp"})
		pc := netns.ListenPacket(t, p, "udp", ":53")
		go func() {
			for buf := make([]byte, 16); ; {
				_, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = pc.WriteTo([]byte(name), from)
			}
		}()
		echo(name)
		n.del(p)
		_ = pc.Close()
		echo("")
	}
}

// A host port that is reachable through 127.0.0.1 needs route_localnet on the pod's device, which by itself would let
// the pod reach whatever listens on the host's loopback (CVE-2020-8558).
func TestLoopbackStaysClosedToPods(t *testing.T) {
	n := unguarded(t, "10.42.0.0/16").ready("10.42.7.0/24")
	p := n.pod("aaa", PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
	serve(t, here{}, "node", "tcp", "127.0.0.1:9999")
	testenv.NoError(t, p.Do(func() error {
		for _, cmd := range []string{
			"ip addr del 127.0.0.1/8 dev lo",
			"ip route add 127.0.0.1/32 via 10.42.7.1 dev eth0 src " + p.ips[0],
		} {
			if out, err := exec.Command("sh", "-c", cmd).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", cmd, err, out)
			}
		}
		return writeSysctl(sysctl{"net/ipv4/conf/eth0/route_localnet", "1"})
	}))
	refuse(t, p, "pod to the host's loopback", "127.0.0.1:9999")
	// Without the guard it would have worked, so the refusal above is the guard's.
	netns.NFT(t, "flush chain inet coracle guard")
	expect(t, p, "pod to the host's loopback, unguarded", "127.0.0.1:9999", "node "+p.ips[0])
}

// TestFirewallsAreReportedOnce: a firewall that drops packets is reported once, and so is its removal.
func TestFirewallsAreReportedOnce(t *testing.T) {
	n := newNode(t, "10.42.0.0/16")
	n.stop()
	logged := make(chan string, 8) // more than there are reports
	n.o.Firewalls = func(found string) { logged <- found }
	n.start()
	n.ready("10.42.7.0/24")
	expectLog := func(want string) {
		t.Helper()
		select {
		case got := <-logged:
			testenv.False(t, (want == "") != (got == "") || !strings.Contains(got, want), "logged is %q, want %q", got, want)
		case <-time.After(2 * time.Minute):
			t.Fatalf("nothing is logged, want %q", want)
		}
	}
	netns.NFT(t, "add table inet foreign; add chain inet foreign f { type filter hook forward priority 0; policy drop; }")
	expectLog("inet foreign f")
	testenv.Until(t, 2*time.Minute, "the log says so", func() bool {
		return strings.Contains(n.log(), "Another program's firewall decides what comes to this machine and to its pods")
	})
	netns.NFT(t, "delete table inet foreign")
	expectLog("")
	testenv.Until(t, 2*time.Minute, "the log says so", func() bool {
		return strings.Contains(n.log(), "No other program's firewall drops what comes to this machine")
	})
	if len(logged) > 0 {
		t.Errorf("logged again: %q", <-logged)
	}
}

// TestHostPortsLeaveServicesAlone: IPVS has Services' addresses on a device of the node's. What is sent there goes to
// no pod with a host port.
func TestHostPortsLeaveServicesAlone(t *testing.T) {
	n := newNode(t, "10.42.0.0/16").ready("10.42.7.0/24")
	n.stop()
	n.o.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}
	n.start()
	testenv.Until(t, 2*time.Minute, "the network has started", n.server.Ready)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = nft.IPVSDevice
	testenv.NoError(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})) // few kernels of test machines have dummy
	const clusterIP, externalIP, laterIP = "10.43.0.9", "203.0.113.8", "203.0.113.9"
	address := func(ip string) {
		t.Helper()
		testenv.NoError(t, netns.AddAddress(nft.IPVSDevice, ip+"/32"))
	}
	address(clusterIP)
	address(externalIP)
	p, client := n.pod("aaa", PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}), n.pod("bbb")
	serve(t, p, "pod", "tcp", ":80")
	serve(t, here{}, "service", "tcp", "0.0.0.0:8080") // in IPVS' place
	expect(t, n.outside, "outside, the node's address", nodeAddr+":8080", "pod "+outsideAddr)
	served := func(ip string) error {
		for who, from := range map[string]netns.Doer{"the node": here{}, "a pod": client} {
			if got, err := ask(from, ip+":8080"); err != nil || !strings.HasPrefix(got, "service ") {
				return fmt.Errorf("%s at %s: %q answers, %v", who, ip, got, err)
			}
		}
		return nil
	}
	for _, ip := range []string{clusterIP, externalIP} {
		testenv.Check(t, served(ip))
	}
	address(laterIP)
	eventually(t, func() error { return served(laterIP) })
	testenv.NoError(t, netlink.LinkDel(&netlink.Bridge{LinkAttrs: attrs}))
	eventually(t, func() error {
		if out := netns.NFT(t, "list set inet coracle services4"); strings.Contains(out, externalIP) {
			return fmt.Errorf("the table still has an address of before:\n%s", out)
		}
		return nil
	})
}
