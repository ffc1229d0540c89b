// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"slices"
	"strconv"
	"strings"

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

// reservedPorts are those that no pod may have as a host port.
var reservedPorts = []uint64{6443, 6444, 10053, 10248, 10250}

// ReservedListeners wants all listeners that a machine's programs reach at loopback to be out of the reach of host
// ports.
func (s *Server) ReservedListeners() {
	s.T.Helper()
	for _, at := range s.Listeners() {
		address, number, _ := strings.Cut(at, ":")
		port, err := strconv.ParseUint(number, 16, 16)
		loopback, everywhere := strings.HasSuffix(address, "7F"), strings.Trim(address, "0") == ""
		reserved := strings.HasPrefix(at, OwnLoopback) || slices.Contains(reservedPorts, port)
		if err != nil || (loopback || everywhere) && !reserved {
			s.T.Errorf("%s: a listener at %s, port %d, is neither at clusterconfig.Loopback nor at a reserved port: %v",
				s.NodeName(), address, port, err)
		}
	}
}
