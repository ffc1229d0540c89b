// SPDX-License-Identifier: Apache-2.0

// This file defines the message of the condition Kept. Servers and nodes of other versions read it too.

package loadbalancer

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

const (
	// keptVersion begins a message. Versions before the first have the same groups without it, and skip it. So
	// ReadKept skips what is no group, and a later version must keep the groups.
	keptVersion = "v1"
	// maxKept limits the listed addresses, so that a status stays within the API's limit.
	maxKept = 512
)

// AddressPort is a port at an address.
type AddressPort struct {
	Address netip.Addr
	Port    Port
}

// WriteKept returns the message that lists address ports, or "" for none. It is the version and groups, separated by
// semicolons: "v1; 443/TCP,80/TCP at 10.0.0.1,10.0.0.2; 443/TCP at 10.0.0.3".
func WriteKept(kept []AddressPort) string {
	byAddress := map[netip.Addr][]string{}
	for _, p := range kept {
		byAddress[p.Address] = append(byAddress[p.Address], p.Port.String())
	}
	byPorts := map[string][]netip.Addr{}
	for a, ports := range byAddress {
		slices.Sort(ports)
		text := strings.Join(ports, ",")
		byPorts[text] = append(byPorts[text], a)
	}
	message, left := "", maxKept
	for _, ports := range slices.Sorted(maps.Keys(byPorts)) {
		at := byPorts[ports]
		slices.SortFunc(at, netip.Addr.Compare)
		words := clusterconfig.Strings(at[:min(len(at), left)])
		if left -= len(words); len(words) > 0 {
			message += "; " + ports + " at " + strings.Join(words, ",")
		}
	}
	if message == "" {
		return ""
	}
	return keptVersion + message
}

// ReadKept returns the address ports that a message lists.
func ReadKept(message string) iter.Seq[AddressPort] {
	return func(yield func(AddressPort) bool) {
		for group := range strings.SplitSeq(message, "; ") {
			ports, addresses, _ := strings.Cut(group, " at ")
			for text := range strings.SplitSeq(addresses, ",") {
				a, err := netip.ParseAddr(text)
				if err != nil {
					continue
				}
				for word := range strings.SplitSeq(ports, ",") {
					number, protocol, _ := strings.Cut(word, "/")
					n, err := strconv.ParseUint(number, 10, 16)
					if err == nil && !yield(AddressPort{a, PortOf(corev1.Protocol(protocol), int32(n))}) {
						return
					}
				}
			}
		}
	}
}
