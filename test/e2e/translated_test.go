//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/harness"
)

// behindRouter puts a router of its own between a machine and the site: the machine has a private address, and the
// router one that others reach.
const behindRouter = `ip netns add router
ip link set eth0 netns router
ip -n router link set eth0 name wan
ip -n router link set lo up
ip -n router addr add 203.0.113.3/24 dev wan
ip -n router link set wan up
ip link add eth0 type veth peer name lan netns router
ip -n router addr add 192.168.50.1/24 dev lan
ip -n router link set lan up
ip addr add 192.168.50.2/24 dev eth0
ip link set eth0 up
ip route add default via 192.168.50.1
nsenter --net=/run/netns/router sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'`

// translates has the router give what comes from its machine its own address, and datagrams a port from this one on.
// What it knew of connections of before it forgets, as the kernel does when an address goes.
func translates(t *testing.T, m *harness.Machine, port int) {
	t.Helper()
	rules := fmt.Sprintf(`add table ip router; delete table ip router; add table ip router; add chain ip router out { type nat hook postrouting priority srcnat; };
add rule ip router out oifname wan meta l4proto udp masquerade to :%d-%d; add rule ip router out oifname wan masquerade`, port, port+99)
	if out, err := m.NFTIn("router", rules); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := m.Run("sh", "-ec", "ip -n router addr del 203.0.113.3/24 dev wan; ip -n router addr add 203.0.113.3/24 dev wan"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestWireGuardBehindRouter: a node has a private address behind a router that translates addresses and ports. Its pods
// and those of a node with a public address reach one another, in either direction, and again when the router has given
// the tunnel another port.
func TestWireGuardBehindRouter(t *testing.T) {
	site := harness.NewSite(t)
	machine := site.NewMachine()
	machine.Readdress("203.0.113.2")
	s := machine.NewServer("--network-backend", clusterconfig.NetworkWireGuard)
	s.AddBoxImage()
	s.StartAPI()

	hidden := site.NewMachine()
	if out, err := hidden.Run("sh", "-ec", behindRouter); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	hidden.IP = "192.168.50.2"
	translates(t, hidden, 20000)
	a := hidden.NewAgent(s)
	a.AddBoxImage()
	a.Start()

	var manifest strings.Builder
	nodes := []*harness.Server{s, a}
	for i, n := range nodes {
		harness.Eventually(t, longer, "the node is ready", func() error { return s.NodeReady(n) })
		fmt.Fprintf(&manifest, "---\n{apiVersion: v1, kind: Pod, metadata: {name: box-%d}, spec: {nodeName: %s, terminationGracePeriodSeconds: 0, containers: [%s, command: [testbox, serve]}]}}\n",
			i, n.NodeName(), harness.BoxYAML)
	}
	s.Apply(manifest.String())
	var ips []string
	for i := range nodes {
		pod := fmt.Sprintf("box-%d", i)
		s.Kubectl("wait", "--for=condition=Ready", "pod/"+pod, "--timeout=180s")
		ips = append(ips, s.Kubectl("get", "pod", pod, "-o", "jsonpath={.status.podIP}"))
	}
	spy := "add table inet spy; add chain inet spy in { type filter hook prerouting priority -400; }"
	ports := []int{20000, 30000}
	for _, port := range ports {
		spy += fmt.Sprintf("; add counter inet spy from%d; add rule inet spy in iifname eth0 ip saddr 203.0.113.3 udp sport %d-%d udp dport %d counter name from%d", port, port, port+99, clusterconfig.WireGuardPort, port)
	}
	if out, err := machine.NFT(spy); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for i, port := range ports {
		if i > 0 {
			translates(t, hidden, port)
		}
		began := time.Now()
		for _, way := range [][2]int{{0, 1}, {1, 0}} { // first the one that has to wait until it hears of the other
			got := s.Kubectl("exec", fmt.Sprintf("box-%d", way[0]), "--", "testbox", "get", "http://"+ips[way[1]]+":8080/peer", "180")
			if !strings.HasPrefix(got, ips[way[0]]+":") {
				t.Errorf("pod %d sees %q, want %s", way[1], got, ips[way[0]])
			}
			t.Logf("from port %d on: pod %d reaches pod %d after %v", port, way[0], way[1], time.Since(began).Round(100*time.Millisecond))
		}
		out, err := machine.NFT("list", "counter", "inet", "spy", fmt.Sprint("from", port))
		if err != nil || strings.Contains(out, "packets 0 ") {
			t.Errorf("no datagram of the tunnel's came from the router's port %d on: %v %s", port, err, out)
		}
	}
}
