// SPDX-License-Identifier: Apache-2.0

// Package ipvs serves Services by the kernel's IPVS: one virtual server for each address and port of a Service, and one
// real server for each endpoint.
//
// Desired computes the state that the kernel should have, as a pure function of the state of upstream's change
// trackers. Proxier reads the kernel, writes the difference, and prunes. The package owns the virtual servers that have
// its flag, the device coracleipvs0 with the addresses of Services, the nftables tables `coracle-ipvs`, and the sysctls
// of sysctls.go. It never changes another program's virtual servers or addresses of other devices.
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

// Server has the properties of a virtual server in IPVS, without its real servers.
type Server struct {
	Scheduler string
	// Affinity is for how many seconds a client gets the same real server again; 0 means no affinity.
	Affinity uint32
}

// VirtualServer is a virtual server with its real servers, all of which take connections. They are sorted.
type VirtualServer struct {
	Server
	Reals []netip.AddrPort
}

// DesiredState is the state that the kernel should have for one family.
type DesiredState struct {
	Servers map[Key]VirtualServer
	// Addresses are the addresses that our device has to have.
	Addresses map[netip.Addr]bool
	// Sets are the contents of the nftables sets and maps, by the names in rules.go. An element is its key. In a map a
	// colon and its value follow.
	Sets map[string]map[string]bool
}

func newDesiredState() DesiredState {
	s := DesiredState{Servers: map[Key]VirtualServer{}, Addresses: map[netip.Addr]bool{}, Sets: map[string]map[string]bool{}}
	for _, name := range setNames {
		s.Sets[name] = map[string]bool{}
	}
	return s
}

// String returns the state as sorted text, for tests and for readers.
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
