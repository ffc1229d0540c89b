// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/test/services/lb"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestHolderIsReplacedOnlyWhenUnresponsive(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.200"), netip.MustParseAddr("10.0.0.201")
	both := map[netip.Addr][]string{a: {"m", "n"}, b: {"m", "n"}}
	silent := map[string]bool{}
	alive := func(n string) bool { return !silent[n] }
	first := Assign(loadbalancer.Holders{}, 7, both, alive, holderReports{})
	testenv.False(t, first[a].Node == first[b].Node || first[a].Term != 7, "not spread: %v", first)
	testenv.Equal(t, fmt.Sprint(Assign(first, 8, both, alive, holderReports{})), fmt.Sprint(first), "without a reason %v became", first)
	silent[first[a].Node] = true
	moved := Assign(first, 8, both, alive, holderReports{})
	testenv.False(t, moved[a].Node != first[b].Node || moved[a].Term != 8 || moved[b] != first[b], "%v became %v", first, moved)
	silent["m"], silent["n"] = true, true
	testenv.Equal(t, fmt.Sprint(Assign(moved, 9, both, alive, holderReports{})), fmt.Sprint(moved), "all are silent, and %v became", moved)
	silent = map[string]bool{}
	if left := Assign(moved, 9, map[netip.Addr][]string{a: nil, b: {"m"}}, alive, holderReports{}); left[a].Node != "" || left[b].Node != "m" {
		t.Errorf("without candidates: %v", left)
	}
	testenv.Equal(t, len(Assign(moved, 9, nil, alive, holderReports{})), 0, "without addresses:")

	noHolder := Assign(loadbalancer.Holders{}, 7, map[netip.Addr][]string{a: nil}, alive, holderReports{})
	if late := Assign(noHolder, 8, both, alive, holderReports{}); !late[a].New {
		t.Errorf("when there is a node at last: %v, %v", noHolder, late)
	}
}

// TestNewHolderProbesUnprovenAddress: the network is asked by the node that takes an address that none has proven yet,
// and where another machine uses it.
func TestNewHolderProbesUnprovenAddress(t *testing.T) {
	a := netip.MustParseAddr("10.0.0.200")
	both, dead := map[netip.Addr][]string{a: {"m", "n"}}, ""
	alive := func(n string) bool { return n != dead }
	used := map[netip.Addr]string{a: "02:00:00:00:00:01"}
	first := Assign(loadbalancer.Holders{}, 7, both, alive, holderReports{})
	testenv.True(t, first[a].New, "no machine has answered for it: %v", first)
	stays := Assign(first, 8, both, alive, holderReports{proven: loadbalancer.Proven{a: 6}})
	testenv.True(t, stays[a] == first[a], "what was proven is another holding: %v", stays)
	proven := Assign(first, 8, both, alive, holderReports{proven: loadbalancer.Proven{a: 7}})
	testenv.False(t, !proven[a].Same(first[a]) || proven[a].New, "%v was proven, and is %v", first, proven)
	dead = first[a].Node
	if moved := Assign(first, 9, both, alive, holderReports{}); moved[a].Node == dead || !moved[a].New {
		t.Errorf("the first one died before it had proven it: %v", moved)
	}
	if moved := Assign(first, 9, both, alive, holderReports{proven: loadbalancer.Proven{a: 7}}); moved[a].New {
		t.Errorf("the first one died, and had proven it: %v", moved)
	}
	if moved := Assign(proven, 9, both, alive, holderReports{}); moved[a].New {
		t.Errorf("it was proven: %v", moved)
	}
	taken := holderReports{inUse: used, proven: loadbalancer.Proven{a: 7}}
	moved := Assign(proven, 9, both, alive, taken)
	if again := Assign(moved, 10, both, alive, taken); !moved[a].New || !again[a].New {
		t.Errorf("another machine uses it: %v, %v", moved, again)
	}
	if noHolder := Assign(first, 9, map[netip.Addr][]string{a: nil}, alive, holderReports{}); noHolder[a].Node != "" || !noHolder[a].New {
		t.Errorf("there is no holder: %v", noHolder)
	}
}

// TestNodesSpeakForTheirOwnAddresses: what a node says of an address counts while it is the holder, and the Service's
// owner reads it.
func TestNodesSpeakForTheirOwnAddresses(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.200"), netip.MustParseAddr("10.0.0.201")
	m, n := lb.Node("m"), lb.Node("n")
	m.Annotations = map[string]string{loadbalancer.ConflictsAnnotation: "10.0.0.200=02:00:00:00:00:01,10.0.0.201=02:00:00:00:00:02,nonsense,=,10.0.0.202=x"}
	got := InUse([]*corev1.Node{m, n}, loadbalancer.Holders{a: {Node: "m", Term: 1}, b: {Node: "n", Term: 1}})
	testenv.False(t, len(got) != 1 || got[a] != "02:00:00:00:00:01", "in use are %v", got)
	m.Annotations[loadbalancer.ProvenAnnotation] = "10.0.0.200=1,10.0.0.201=2,10.0.0.202=x,=,"
	n.Annotations = map[string]string{loadbalancer.ProvenAnnotation: "10.0.0.201=1"}
	if got := Proven([]*corev1.Node{m, n}, loadbalancer.Holders{a: {Node: "m", Term: 1}, b: {Node: "n", Term: 2}}); len(got) != 1 || got[a] != 1 {
		t.Errorf("proven are %v", got)
	}
	v := Allocation{Ours: true, Pool: true, Addresses: []netip.Addr{a}, Reason: ReasonServed}
	if v.inUse(got); v.Reason != ReasonAddressInUse || !strings.Contains(v.Message, "02:00:00:00:00:01") {
		t.Errorf("its owner reads %s: %s", v.Reason, v.Message)
	}
}
