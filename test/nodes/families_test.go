//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"context"
	"fmt"
	"testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/harness"
)

// families are those of a cluster's addresses.
type families string

const (
	four families = "IPv4"
	six  families = "IPv6"
	both families = "both"
)

// count is how many addresses a pod has.
func (f families) count() int {
	if f == both {
		return 2
	}
	return 1
}

// networks are the flags of the first server.
func (f families) networks() []string {
	pods, services := "10.42.0.0/16,fd42::/56", "10.43.0.0/16,fd43::/112"
	switch f {
	case four:
		return nil // it is what a cluster has without such a flag
	case six:
		pods, services = "fd42::/56", "fd43::/112"
	case both:
	}
	return []string{"--cluster-cidr", pods, "--service-cidr", services}
}

// outside gives clients outside of the machines their address of IPv6.
func (f families) outside(t *testing.T, site *harness.Site) {
	t.Helper()
	if f == four {
		return
	}
	if out, err := site.Command(context.Background(), "ip", "addr", "add", outside6+"/64", "dev", "site", "nodad").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// prepare takes a new machine's address of IPv4 where there are none.
func (f families) prepare(machine *harness.Machine) {
	if f == six {
		machine.OnlyIPv6(address6(machine.Number - 1))
	}
}

// addresses are those of a node.
func (m *mesh) addresses(i int) []string {
	if m.families == both {
		return []string{m.nodes[i].IP, address6(i)}
	}
	return []string{m.nodes[i].IP}
}

// TestNetworkOfOneFamily: clusters that have IPv4 alone, and IPv6 alone, on their machines, in pods and in Services,
// with nodes that are gateways to their pods and with the encrypted tunnel. All meet all, by packets as large as there
// is room for, and these come in no other way than the back end's. vxlan has others: most scenarios have IPv4 alone,
// and TestFaultsOfIPv6 has IPv6 alone.
func TestNetworkOfOneFamily(t *testing.T) {
	room := map[families]map[string]int{
		four: {clusterconfig.NetworkHostGateway: 1500, clusterconfig.NetworkWireGuard: 1440},
		six:  {clusterconfig.NetworkHostGateway: 1500, clusterconfig.NetworkWireGuard: 1420},
	}
	for _, c := range []struct {
		families
		begins, changes string
		short           bool // it is tried at the short length, too
	}{
		{four, clusterconfig.NetworkHostGateway, clusterconfig.NetworkWireGuard, true},
		{six, clusterconfig.NetworkWireGuard, clusterconfig.NetworkHostGateway, true},
		{four, clusterconfig.NetworkWireGuard, clusterconfig.NetworkHostGateway, false},
		{six, clusterconfig.NetworkHostGateway, clusterconfig.NetworkWireGuard, false},
	} {
		if !c.short && !whole {
			continue
		}
		t.Run(fmt.Sprintf("%s/%s", c.families, c.begins), func(t *testing.T) {
			m := newMeshOf(t, c.families, 2, c.begins, "eth0")
			m.workload()
			m.listensAsDocumented(c.begins)
			for _, backend := range []string{c.begins, c.changes} {
				if backend != c.begins {
					m.changeBackend(backend)
				}
				m.spy()
				m.allMeet()
				m.largePackets(1500, room[c.families][backend])
				m.expectWay(backend)
			}
		})
	}
}
