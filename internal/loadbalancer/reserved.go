// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// NoPorts is the text of an empty list of ports.
const NoPorts = "none"

// ReservedPort is a port of the nodes that no Service may have.
type ReservedPort struct {
	Protocol string // TCP, UDP or SCTP
	Number   int
}

var protocols = []string{"TCP", "UDP", "SCTP"}

// ParsePorts parses each NUMBER, which means all protocols, or NUMBER/PROTOCOL. NoPorts alone means no ports.
func ParsePorts(texts []string) ([]ReservedPort, error) {
	if slices.Equal(texts, []string{NoPorts}) {
		return nil, nil
	}
	var out []ReservedPort
	for _, t := range texts {
		number, protocol, one := strings.Cut(t, "/")
		n, err := strconv.ParseUint(number, 10, 16)
		if protocol = strings.ToUpper(protocol); err != nil || n == 0 || one && !slices.Contains(protocols, protocol) {
			return nil, fmt.Errorf("%q is no port such as 22 or 22/TCP", t)
		}
		for _, p := range protocols {
			if !one || p == protocol {
				out = append(out, ReservedPort{p, int(n)})
			}
		}
	}
	return out, nil
}
