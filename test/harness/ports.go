// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/coracle-k8s/coracle/test/proc"
)

// listedPort is a port in the list of connlimit, as metrics have it.
var listedPort = regexp.MustCompile(`(?m)^coracle_tcp_connections_max\{address="([^"]+)",port="([^"]+)"\} (\d+)$`)

// ListsItsPorts wants the TCP sockets at which the process listens to be those in its list of ports, and each of these
// to have a bound. Metrics returns the process's metrics. The sockets that it keeps for the ingress proxy are left out,
// which bounds their connections, and ports that the operator's flags gave the kubelet.
func (s *Server) ListsItsPorts(metrics func() (string, error), operators ...uint16) {
	s.T.Helper()
	Eventually(s.T, Soon, s.NodeName()+" lists the ports at which it listens", func() error {
		text, err := metrics()
		if err != nil {
			return err
		}
		sockets, err := proc.Listening(s.Pid())
		if err != nil {
			return err
		}
		proxies, _ := s.Run("pgrep", "-x", "coracle-ingress") // an error means that there is none
		for inside := range strings.FieldsSeq(proxies) {
			number, err := strconv.Atoi(inside)
			if err != nil {
				return err
			}
			of, err := proc.Listening(s.HostPid(number))
			if err != nil {
				return err
			}
			for inode := range of {
				delete(sockets, inode)
			}
		}
		maps.DeleteFunc(sockets, func(_ string, at netip.AddrPort) bool { return slices.Contains(operators, at.Port()) })
		return comparePorts(slices.Collect(maps.Values(sockets)), listedPort.FindAllStringSubmatch(text, -1))
	})
}

// comparePorts compares sockets with rows of address, name and bound. A row with the port 0 is for one socket at its
// address that no other row has.
func comparePorts(sockets []netip.AddrPort, rows [][]string) error {
	var exact, chosen [][]string
	for _, row := range rows {
		if strings.HasSuffix(row[1], ":0") {
			chosen = append(chosen, row)
		} else {
			exact = append(exact, row)
		}
	}
	for _, row := range append(exact, chosen...) {
		at, err := netip.ParseAddrPort(row[1])
		if err != nil {
			return err
		}
		i := slices.IndexFunc(sockets, func(s netip.AddrPort) bool { return s == at || at.Port() == 0 && s.Addr() == at.Addr() })
		if i < 0 {
			return fmt.Errorf("the list has %s at %s, and no socket listens there", row[2], at)
		}
		if row[3] == "0" {
			return fmt.Errorf("the list has %s at %s, without a bound", row[2], at)
		}
		sockets = slices.Delete(sockets, i, i+1)
	}
	if len(sockets) > 0 {
		return fmt.Errorf("the process listens at %v, which its list of ports does not have", sockets)
	}
	return nil
}
