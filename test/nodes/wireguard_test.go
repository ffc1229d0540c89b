//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestNetworkWireGuard: a cluster's pods, Services and hosts reach one another through the encrypted tunnel, and
// nothing of pods' is on the underlay in the clear. A node keeps its key over a restart, and is followed when it has
// another one.
func TestNetworkWireGuard(t *testing.T) {
	m := newMesh(t, 3, "wireguard", "eth0")
	m.workload()
	m.listensAsDocumented("wireguard")
	m.spy()
	m.allMeet()
	m.largePackets(1500, 1440, 1440)
	m.largePackets(1280, 1220, 1280)
	m.largePackets(1400, 1340, 1340)

	const i = 1
	before := m.publicKey(i, "")
	m.restart(i, func() {})
	testenv.Equal(t, m.publicKey(i, ""), before, "after a restart the node's key is")
	m.throughTheTunnel("after a restart", i)
	m.restart(i, func() {
		testenv.Check(t, os.Remove(filepath.Join(m.nodes[i].DataDir, "agent", "cni", "wireguard.key")))
	})
	m.publicKey(i, before)
	m.throughTheTunnel("after its key changed", i)

	m.expectWay(clusterconfig.NetworkWireGuard)
}

// expectWay: since there are spies, what pods sent to other nodes came as the back end, host-gw or wireguard, has it,
// and in no other way.
func (m *mesh) expectWay(backend string) {
	m.Helper()
	for j := range m.nodes {
		for counter, wanted := range map[string]bool{"plain": backend == clusterconfig.NetworkHostGateway, "sealed": backend == clusterconfig.NetworkWireGuard} {
			if out := m.nft(j, "list", "counter", "inet", "spy", counter); strings.Contains(out, "packets 0 ") == wanted {
				m.Errorf("with %s the packets that came to node %d are %s", backend, j, out)
			}
		}
	}
}

func (m *mesh) nft(i int, args ...string) string {
	m.Helper()
	out, err := m.nodes[i].NFT(args...)
	testenv.Require(m, err == nil, "node %d: nft %v: %v\n%s", i, args, err, out)
	return out
}

// spy counts, from now on, what comes to the machines' interfaces from pods in the clear, and what comes through the
// tunnel.
func (m *mesh) spy() {
	m.Helper()
	var rules strings.Builder
	rules.WriteString("add table inet spy; delete table inet spy; add table inet spy; add counter inet spy plain; add counter inet spy sealed; " +
		"add chain inet spy in { type filter hook prerouting priority -400; }")
	for _, match := range []string{"ip saddr 10.42.0.0/16", "ip daddr 10.42.0.0/16", "ip6 saddr fd42::/56", "ip6 daddr fd42::/56"} {
		fmt.Fprintf(&rules, "; add rule inet spy in iifname eth0 %s counter name plain", match)
	}
	rules.WriteString("; add rule inet spy in iifname eth0 udp dport 51820 counter name sealed")
	for i := range m.nodes {
		m.nft(i, rules.String())
	}
}

// publicKey waits until the node has published a key, and another one than before.
func (m *mesh) publicKey(i int, before string) (key string) {
	m.Helper()
	harness.Eventually(m, patient, "the node has published its key", func() (err error) {
		key, err = m.nodes[0].TryKubectl("get", "node", m.nodes[i].NodeName(), "-o", `jsonpath={.metadata.annotations.coracle\.dev/wireguard}`)
		if err == nil && (key == "" || key == before) {
			err = fmt.Errorf("it says %q", key)
		}
		return err
	})
	return key
}

// restart stops coracle on a node, does something, and starts it again. Pods go on.
func (m *mesh) restart(i int, meanwhile func()) {
	m.Helper()
	testenv.NoError(m, m.nodes[i].Stop())
	meanwhile()
	m.nodes[i].Start()
	m.returned(i)
}

// returned waits until a node that was away or was started again is ready and its kubelet knows its pods: until then no
// command runs in them.
func (m *mesh) returned(i int) {
	m.Helper()
	harness.Eventually(m, patient, "the node is ready", func() error { return m.nodes[0].NodeReady(m.nodes[i]) })
	harness.Eventually(m, patient, "the kubelet knows its pods", func() error {
		_, err := m.nodes[0].TryKubectl("exec", fmt.Sprintf("box-%d", i), "--", "true")
		return err
	})
}

// throughTheTunnel: the node's pod reaches those of the others, and these reach it.
func (m *mesh) throughTheTunnel(when string, i int) {
	m.Helper()
	for j := range m.nodes {
		if i == j {
			continue
		}
		for _, way := range [][2]int{{i, j}, {j, i}} {
			var visits []visit
			for f, ip := range m.pods[way[1]] {
				visits = append(visits, visit{"http://" + host(ip) + ":8080/peer", host(m.pods[way[0]][f])})
			}
			m.judge(fmt.Sprintf("%s, pod %d", when, way[0]), m.exec(way[0], script("testbox", visits)), visits)
		}
	}
}
