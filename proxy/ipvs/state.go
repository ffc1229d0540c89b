// SPDX-License-Identifier: Apache-2.0

// Package ipvs serves Services by the kernel's IPVS: one virtual server for each address and port of a Service, one
// real server for each endpoint.
//
// Desired says what the kernel should hold, as a pure function of what upstream's change trackers know; Proxier reads
// the kernel, sends the difference, and prunes. The package owns the virtual servers that carry its flag, the device
// coracleipvs0 with the addresses of Services, the nftables tables `coracle-ipvs`, and the switches of sysctls.go. It
// never touches a virtual server of another program, and no address of a device that is not its own.
package ipvs

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Key is the address of a virtual server.
type Key struct {
	Protocol corev1.Protocol
	Addr     netip.Addr
	Port     uint16
}

func (k Key) String() string {
	return fmt.Sprintf("%s %s", strings.ToLower(string(k.Protocol)), netip.AddrPortFrom(k.Addr, k.Port))
}

func compareKeys(a, b Key) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
}

// Server is a virtual server without its real ones: what IPVS keeps of it.
type Server struct {
	Scheduler string
	// Affinity is for how many seconds a client comes back to the same real server; 0 is none.
	Affinity uint32
}

// VirtualServer is one with its real servers, all of which take connections. They are sorted.
type VirtualServer struct {
	Server
	Reals []netip.AddrPort
}

// DesiredState is what the kernel should hold for one family.
type DesiredState struct {
	Servers map[Key]VirtualServer
	// Addresses are to be local, on our device.
	Addresses map[netip.Addr]bool
	// Sets are the contents of the nftables sets and maps, by the names that rules.go has. An element is its key, and
	// after a colon in a map its value.
	Sets map[string]map[string]bool
}

func newDesiredState() DesiredState {
	s := DesiredState{Servers: map[Key]VirtualServer{}, Addresses: map[netip.Addr]bool{}, Sets: map[string]map[string]bool{}}
	for _, name := range setNames {
		s.Sets[name] = map[string]bool{}
	}
	return s
}

// String is the state as text, sorted, for tests and for people.
func (s DesiredState) String() string {
	var b strings.Builder
	for _, k := range slices.SortedFunc(maps.Keys(s.Servers), compareKeys) {
		v := s.Servers[k]
		fmt.Fprintf(&b, "%s %s", k, v.Scheduler)
		if v.Affinity > 0 {
			fmt.Fprintf(&b, " affinity %ds", v.Affinity)
		}
		for _, r := range v.Reals {
			fmt.Fprintf(&b, "\n  %s", r)
		}
		b.WriteByte('\n')
	}
	for _, a := range slices.SortedFunc(maps.Keys(s.Addresses), netip.Addr.Compare) {
		fmt.Fprintf(&b, "address %s\n", a)
	}
	for _, name := range setNames {
		for _, e := range slices.Sorted(maps.Keys(s.Sets[name])) {
			fmt.Fprintf(&b, "%s %s\n", name, e)
		}
	}
	return b.String()
}
