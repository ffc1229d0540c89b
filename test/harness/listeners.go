// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"slices"
	"strconv"
	"strings"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// Listeners are the addresses and ports, as /proc/net/tcp has them, at which programs of a machine listen by TCP.
func (s *Server) Listeners() []string {
	s.T.Helper()
	out := testenv.Must(s.Run("awk", `$4 == "0A" { print $2 }`, "/proc/net/tcp", "/proc/net/tcp6"))(s.T)
	return strings.Fields(out)
}

// OwnLoopback is clusterconfig.Loopback as /proc/net/tcp has it.
const OwnLoopback = "524F437F:"

// reservedPorts are those that no pod may have as a host port. The kernel's end of the tunnel between nodes is a socket
// as well, whose port pods may not have by UDP.
var reservedPorts = []uint64{6443, 6444, clusterconfig.VXLANPort, 10053, 10248, 10250}

// ReservedListeners wants all listeners that a machine's programs reach at loopback, by TCP and UDP, to be out of the
// reach of host ports. The ports of the test's own programs there are left out.
func (s *Server) ReservedListeners(own ...uint64) {
	s.T.Helper()
	udp := testenv.Must(s.Run("awk", `$4 == "07" { print $2 }`, "/proc/net/udp", "/proc/net/udp6"))(s.T) // not those that are connected
	for _, at := range append(s.Listeners(), strings.Fields(udp)...) {
		address, number, _ := strings.Cut(at, ":")
		port, err := strconv.ParseUint(number, 16, 16)
		loopback, everywhere := strings.HasSuffix(address, "7F"), strings.Trim(address, "0") == ""
		reserved := strings.HasPrefix(at, OwnLoopback) || slices.Contains(reservedPorts, port) || slices.Contains(own, port)
		if err != nil || (loopback || everywhere) && !reserved {
			s.T.Errorf("%s: a listener at %s, port %d, is neither at clusterconfig.Loopback nor at a reserved port: %v",
				s.NodeName(), address, port, err)
		}
	}
}
