// SPDX-License-Identifier: Apache-2.0

// Package resolvconf finds the host's resolvers. The kubelet passes their file to pods, and the cluster DNS forwards to
// them. The package only reads.
package resolvconf

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// HostFiles are the files with a host's resolvers. systemd-resolved and NetworkManager's dnsmasq put a stub on a
// loopback address into the first file, and the actual resolvers into their own files.
var HostFiles = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf", "/run/NetworkManager/no-stub-resolv.conf"}

// Choose returns the first file that names a resolver outside of loopback, because a pod has a loopback of its own. If
// there is none, it returns the first file: a file without resolvers is no error.
func Choose(files []string) string {
	for _, f := range files {
		servers, err := Servers(f)
		if err == nil && slices.ContainsFunc(servers, func(a netip.Addr) bool { return !a.IsLoopback() }) {
			return f
		}
	}
	return files[0]
}

// Servers returns the addresses of the nameserver lines of a resolv.conf(5), in order. It skips invalid lines.
func Servers(path string) ([]netip.Addr, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the host's resolvers: %w", err)
	}
	var out []netip.Addr
	for line := range strings.Lines(string(data)) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(words[1]); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out, nil
}
