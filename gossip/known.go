// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"net/netip"
	"slices"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// maxKnown is how many members the file has: each of them that replies knows all others.
const maxKnown = 64

// savedMember is a member in the file. The file has no times and states, since a start does not need them and they
// change often.
type savedMember struct {
	Name    string         `json:"name"`
	Address netip.AddrPort `json:"address"`
	Server  bool           `json:"server,omitempty"`
}

// readKnown returns the members that an earlier run knew. A missing or damaged file has none: it only saves time.
func readKnown(file string) []savedMember {
	var out []savedMember
	if _, err := atomicfile.ReadJSON(file, &out); err != nil {
		return nil
	}
	return slices.DeleteFunc(out, func(k savedMember) bool { return checkName(k.Name) != nil || !k.Address.IsValid() })
}

// writeKnown writes the members, servers first and live ones before the others. It does not write a file with the same
// content.
func writeKnown(file string, members []Info) error {
	out := []savedMember{}
	for _, live := range []bool{true, false} {
		for _, m := range members { // servers come first
			if (m.State == Alive) == live && !m.Self && len(out) < maxKnown && m.Address.IsValid() {
				out = append(out, savedMember{m.Name, m.Address, m.Role == RoleServer})
			}
		}
	}
	slices.SortFunc(out, func(a, b savedMember) int {
		switch {
		case a.Server != b.Server && a.Server:
			return -1
		case a.Server != b.Server:
			return 1
		}
		return a.Address.Compare(b.Address)
	})
	if have := readKnown(file); slices.Equal(have, out) {
		return nil
	}
	return atomicfile.WriteJSON(file, out, 0o600)
}
