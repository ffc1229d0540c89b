//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// portsPage has the table of the ports at which a machine listens.
const portsPage = "../../docs/network.md"

// portRow is a row of it, such as "| 8472 UDP | pods' traffic, with `vxlan` |".
var portRow = regexp.MustCompile(`^\| (\d+) (TCP and UDP|TCP|UDP) \| (.*) \|$`)

// documentedPorts are the ports of the table, such as "8472/udp", without those of other network back ends.
func (m *mesh) documentedPorts(backend string) []string {
	m.Helper()
	page := testenv.Must(os.ReadFile(portsPage))(m)
	_, table, _ := strings.Cut(string(page), "\n### Ports between nodes\n")
	table, _, _ = strings.Cut(table, "\n### ")
	var out []string
	for line := range strings.Lines(table) {
		row := portRow.FindStringSubmatch(strings.TrimSpace(line))
		if row == nil {
			continue
		}
		if _, with, ok := strings.Cut(row[3], ", with `"); ok && with != backend+"`" {
			continue
		}
		for _, protocol := range strings.Split(strings.ToLower(row[2]), " and ") {
			out = append(out, row[1]+"/"+protocol)
		}
	}
	testenv.Require(m, len(out) != 0, "%s has no table of ports", portsPage)
	slices.Sort(out)
	return out
}

// The states of sockets in /proc/net that take what comes from anywhere: TCP_LISTEN, and for UDP one without another
// end.
var listens = map[string]string{"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}

// listening are the ports at which programs and the kernel of a machine listen, but for those on loopback addresses;
// each with a line of /proc/net.
func (m *mesh) listening(i int) map[string]string {
	m.Helper()
	out := map[string]string{}
	for kind, state := range listens {
		for n, line := range strings.Split(m.run(i, "cat", "/proc/net/"+kind), "\n") {
			f := strings.Fields(line)
			if n == 0 || len(f) < 4 || f[3] != state {
				continue
			}
			address, port, _ := strings.Cut(f[1], ":")
			if onLoopback(address) {
				continue
			}
			number, err := strconv.ParseUint(port, 16, 16)
			testenv.NoError(m, err, "%s", line)
			out[fmt.Sprintf("%d/%s", number, strings.TrimSuffix(kind, "6"))] = kind + " " + strings.TrimSpace(line)
		}
	}
	return out
}

// onLoopback reads an address as the kernel prints it: words of four bytes, the lowest of each first, on the processors
// that there are.
func onLoopback(address string) bool {
	const six, mapped = "00000000000000000000000001000000", "0000000000000000FFFF0000"
	v4 := strings.TrimPrefix(address, mapped)
	return address == six || len(v4) == 8 && strings.HasSuffix(v4, "7F")
}

// listensAsDocumented compares each machine's open ports with the table in the documentation.
func (m *mesh) listensAsDocumented(backend string) {
	m.Helper()
	want := m.documentedPorts(backend)
	for i, n := range m.nodes {
		harness.Eventually(m, patient, n.NodeName()+" listens at what is documented", func() error {
			got := m.listening(i)
			for _, p := range want {
				if got[p] == "" {
					return fmt.Errorf("not at %s, only at %v", p, slices.Sorted(maps.Keys(got)))
				}
			}
			return nil
		})
		// A socket of UDP that is about to be connected looks like an open port, on a busy machine for longer.
		harness.Eventually(m, patient, n.NodeName()+" listens at nothing else", func() error {
			for port, line := range m.listening(i) {
				if !slices.Contains(want, port) {
					return fmt.Errorf("at %s, which %s does not have: %s", port, portsPage, line)
				}
			}
			return nil
		})
	}
}
