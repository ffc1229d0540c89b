// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func at(address string, number int32, protocol corev1.Protocol) AddressPort {
	return AddressPort{netip.MustParseAddr(address), Port{protocol, number}}
}

// TestKeptPortsSurviveTheirMessage: what was written is read, also by versions before v1, whose text is read too.
func TestKeptPortsSurviveTheirMessage(t *testing.T) {
	kept := []AddressPort{at("10.0.0.2", 80, "TCP"), at("10.0.0.1", 443, "TCP"), at("10.0.0.1", 80, "TCP"), at("10.0.0.3", 443, "UDP"),
		at("fd00::1", 80, "TCP")}
	const before = "443/TCP,80/TCP at 10.0.0.1; 443/UDP at 10.0.0.3; 80/TCP at 10.0.0.2,fd00::1"
	message := WriteKept(kept)
	testenv.Equal(t, message, "v1; "+before, "")
	for text, got := range map[string][]AddressPort{
		"v1, by this version":          slices.Collect(ReadKept(message)),
		"v1, by a version before it":   readBeforeV1(message),
		"without one, by this version": slices.Collect(ReadKept(before)),
	} {
		for _, p := range kept {
			testenv.True(t, slices.Contains(got, p), "%s: %v is lost: %v", text, p, got)
		}
		testenv.Equal(t, len(got), len(kept), "%s: address ports", text)
	}
	testenv.Equal(t, WriteKept(nil), "", "nothing is written as")
	got := slices.Collect(ReadKept("v1; nonsense at 10.0.0.1; 80 at x; 99999/TCP at 10.0.0.1; v9"))
	testenv.Equal(t, len(got), 0, "address ports are read from nonsense")
}

// TestKeptAddressesAreLimited: a status stays within the API's limit.
func TestKeptAddressesAreLimited(t *testing.T) {
	var many []AddressPort
	for i := range 2 * maxKept {
		many = append(many, AddressPort{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), Port{corev1.ProtocolTCP, 80}})
	}
	testenv.Equal(t, len(slices.Collect(ReadKept(WriteKept(many)))), maxKept, "address ports are written:")
}

// readBeforeV1 reads a message as the versions before v1 do (controllers/servicelb, parseAddressPorts).
func readBeforeV1(text string) []AddressPort {
	var out []AddressPort
	for group := range strings.SplitSeq(text, "; ") {
		ports, at, _ := strings.Cut(group, " at ")
		for _, a := range strings.Split(at, ",") {
			address, err := netip.ParseAddr(a)
			if err != nil {
				continue
			}
			for word := range strings.SplitSeq(ports, ",") {
				number, protocol, _ := strings.Cut(word, "/")
				if n, err := strconv.ParseUint(number, 10, 16); err == nil {
					out = append(out, AddressPort{address, PortOf(corev1.Protocol(protocol), int32(n))})
				}
			}
		}
	}
	return out
}
