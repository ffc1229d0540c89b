//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestNetworkExternalAddresses: nodes that reach one another at addresses alone that another machine translates to
// theirs, as a cloud does, are configured to go by these.
func TestNetworkExternalAddresses(t *testing.T) {
	m := newEmptyMesh(t, both, "eth0")
	m.add(2, "vxlan", func(i int) {
		m.translated(i)
		m.nodes[i].Args = append(m.nodes[i].Args, "--node-external-ip", external(i), "--network-external-ip")
	})
	for i, n := range m.nodes {
		harness.Eventually(t, patient, "the node says where it is found", func() error {
			out, err := m.nodes[0].TryKubectl("get", "node", n.NodeName(), "-o", `jsonpath={.metadata.annotations.coracle\.dev/underlay}`)
			if want := external(i) + "," + address6(i); err == nil && out != want {
				err = fmt.Errorf("it says %q, want %q", out, want)
			}
			return err
		})
	}
	m.workload()
	for _, backend := range []string{"vxlan", "wireguard"} {
		if backend != "vxlan" {
			m.changeBackend(backend)
		}
		m.allMeet()
		for i := range m.nodes {
			for counter, none := range map[string]bool{"direct": true, "translated": false} {
				if out := m.nft(i, "reset", "counter", "inet", "here", counter); strings.Contains(out, "packets 0 ") != none {
					t.Errorf("%s, node %d: the tunnel's datagrams have to come from external addresses, and from no other: %s", backend, i, out)
				}
			}
		}
	}
}

// external is at which address the world finds a machine.
func external(i int) string { return fmt.Sprintf("10.78.0.%d", i+2) }

// translated has the gateway of the site translate a machine's external address to its own and back, and the machine
// drop the tunnels' datagrams that come from machines' own.
func (m *mesh) translated(i int) {
	m.Helper()
	m.nft(i, `add table inet here; add counter inet here direct; add counter inet here translated;
add chain inet here in { type filter hook prerouting priority -400; };
add rule inet here in ip saddr 10.77.0.0/24 udp dport { 8472, 51820 } counter name direct drop;
add rule inet here in ip saddr 10.78.0.0/24 udp dport { 8472, 51820 } counter name translated`)
	own := m.nodes[i].IP
	rules := "add table ip translator\n" +
		"add chain ip translator pre { type nat hook prerouting priority -100; }\n" +
		"add chain ip translator post { type nat hook postrouting priority 100; }\n" +
		fmt.Sprintf("add rule ip translator pre ip daddr %s dnat to %s\n", external(i), own) +
		fmt.Sprintf("add rule ip translator post ip saddr %s ct status dnat snat to %s\n", own, external(i))
	// A gateway that sends packets back to where they came from says that there is a shorter way, which is not to be
	// taken here.
	const forward = "for f in all site; do echo 0 > /proc/sys/net/ipv4/conf/$f/send_redirects; done; echo 1 > /proc/sys/net/ipv4/ip_forward"
	out, err := harness.Output(m.site.Command(context.Background(), "sh", "-ec", forward))
	if err == nil {
		out, err = m.site.NFT(rules)
	}
	testenv.Require(m, err == nil, "%v\n%s", err, out)
}
