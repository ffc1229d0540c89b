// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"net"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestMain(m *testing.M) { Main(m) }

// TestSiteKeepsItsEthernetAddress: what is on a site and no machine keeps its Ethernet address while machines come and
// go. Otherwise these would send their answers to no machine, for as long as they remember the one before: up to a
// minute.
func TestSiteKeepsItsEthernetAddress(t *testing.T) {
	testenv.RequireRoot(t, "a machine is made of namespaces")
	s := NewSite(t)
	is := func() (address string) {
		t.Helper()
		testenv.NoError(t, s.Do(func() error {
			bridge, err := net.InterfaceByName("site")
			if err == nil {
				address = bridge.HardwareAddr.String()
			}
			return err
		}))
		return address
	}
	want := is()
	m := s.NewMachine()
	testenv.Equal(t, is(), want, "a machine came, and the address is")
	m.PowerOff()
	m.PowerOn()
	testenv.Equal(t, is(), want, "a machine was off, and the address is")
}

func TestEachPowerOnIsAnotherBoot(t *testing.T) {
	testenv.RequireRoot(t, "a machine is made of namespaces")
	m := NewMachine(t)
	id := func() string { return testenv.Must(m.Run("cat", "/proc/sys/kernel/random/boot_id"))(t) }
	first := id()
	testenv.Equal(t, id(), first, "a running machine's boot is")
	m.PowerOff()
	m.PowerOn()
	testenv.True(t, id() != first && len(first) == len(id()), "the second boot is %q, as the first one: %q", id(), first)
}

func TestFaultsBecomeRules(t *testing.T) {
	got := rules([]int{1, 2}, map[link]fault{{1, 2}: {cut: true, noConnecting: true}, {2, 1}: {lossPercent: 30, bytesPerSecond: 1000}})
	want := `table netdev site {}
delete table netdev site
table netdev site {
chain to1 {
type filter hook egress device "machine1" priority 0;
ether saddr 02:00:00:00:00:02 numgen random mod 100 < 30 drop
ether saddr 02:00:00:00:00:02 limit rate over 1000 bytes/second burst 65536 bytes drop
}
chain to2 {
type filter hook egress device "machine2" priority 0;
ether saddr 02:00:00:00:00:01 drop
ether saddr 02:00:00:00:00:01 tcp flags & (syn|ack) == syn drop
}
}
`
	testenv.Equal(t, got, want, "")
}
