// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/test/services/lb"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestManyWaitForAnAddress: each address is looked at once, however many Services find that there is none.
func TestManyWaitForAnAddress(t *testing.T) {
	s := &State{Nodes: lb.TwoNodes(), Pools: flagged("10.8.0.0-10.8.255.255")}
	l := s.newLedger()
	for a := netip.MustParseAddr("10.8.0.0"); s.Pools[0].contains(a); a = a.Next() {
		l.holders[a] = []*corev1.Service{nil}
	}
	for range 5000 {
		if a := l.nextAddress(lb.V4, lb.Service("web", 0), []*Pool{&s.Pools[0]}); a.IsValid() {
			t.Fatalf("there is %s", a)
		}
	}
	testenv.Equal(t, l.searches[rangeOf{&s.Pools[0], 0}].sweeps, 1<<16, "addresses were looked at:")
}

func TestPoolSizeCountsUsableAddresses(t *testing.T) {
	for text, want := range map[string][2]int{ // without avoidBuggyIPs, and with it
		"10.0.0.200": {1, 1}, "10.0.0.254-10.0.1.1": {4, 2}, "10.0.0.0-10.0.0.0": {1, 0}, "10.0.0.0-10.0.1.255": {512, 508}, "10.0.0.255": {1, 0},
		"fd00::/120": {256, 256}, "fd00::/64": {maxRange, maxRange}, "10.0.0.5 fd00::ff-fd00::100": {3, 3},
	} {
		p := &Pool{Ranges: lb.Ranges(strings.Fields(text)...)}
		plain := p.size()
		p.AvoidBuggy = true
		testenv.Equal(t, [2]int{plain, p.size()}, want, "%s:", text)
		if a := netip.MustParseAddr("10.0.0.255"); p.contains(a) {
			t.Errorf("%s has %s", text, a)
		}
	}
}

func TestAddressesOutsideAllPoolsAreFound(t *testing.T) {
	s := &State{Nodes: lb.TwoNodes(), Pools: flagged("10.0.0.200")}
	had := []netip.Addr{netip.MustParseAddr("10.0.0.200"), netip.MustParseAddr("10.0.0.201"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.9")}
	testenv.Equal(t, lb.Text(s.withoutPool(had, had[3:])), "10.0.0.201", "")
}
