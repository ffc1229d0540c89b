// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// siteSockets returns the names of the sockets of a table's sites, with their ports. If two sites have the same port,
// the first by name gets it. The server that compiled the table makes sure that there are none. A site with a port
// outside the Gateways' range is ignored.
func siteSockets(t table.Sections) map[string]int {
	out, taken := map[string]int{}, map[uint16]bool{}
	for _, key := range slices.Sorted(maps.Keys(t)) {
		name, ok := strings.CutPrefix(key, table.KindSite+"/")
		var site table.Site
		if !ok || json.Unmarshal(t[key], &site) != nil || !table.IsGatewayPort(int(site.NodePort)) || taken[site.NodePort] {
			continue
		}
		taken[site.NodePort] = true
		kind := table.HTTP
		if site.TLS {
			kind = table.HTTPS
		}
		out[name+"/"+kind] = int(site.NodePort)
	}
	return out
}

// ofGateway reports whether a socket is for a Gateway's port.
func ofGateway(name string) bool { return !strings.HasPrefix(name, table.SiteIngress+"/") }

// socketChange is the message to a proxy after its sockets have changed: names that it closes, and then names that it
// gets.
type socketChange struct {
	closed map[string]int // with their ports, which are guarded until the proxy has closed them
	opened map[string]bool
}

func (c *socketChange) empty() bool { return len(c.closed)+len(c.opened) == 0 }

func (c *socketChange) close(name string, port int) {
	if c.opened[name] {
		delete(c.opened, name)
		return
	}
	if c.closed == nil {
		c.closed = map[string]int{}
	}
	c.closed[name] = port
}

func (c *socketChange) open(name string) {
	if c.opened == nil {
		c.opened = map[string]bool{}
	}
	c.opened[name] = true
}

// adjust opens and closes sockets so that they are the wanted ones of Gateways' ports at these addresses. It returns
// the errors of those that cannot be opened. If another site gets a port, the socket stays open under the new name.
func (s *sockets) adjust(at []netip.Addr, want map[string]int, patient bool, change *socketChange) map[string]error {
	byPort := map[int]string{}
	for name, port := range want {
		byPort[port] = name
	}
	for name, have := range s.addresses() {
		port := int(have[0].Port())
		now := byPort[port]
		if !ofGateway(name) || now == name && sameAddresses(have, at) {
			continue
		}
		change.close(name, port)
		if now != "" && sameAddresses(have, at) {
			s.rename(name, now)
			change.open(now)
		} else {
			s.closeNamed(name)
		}
	}
	failed := map[string]error{}
	have := s.addresses()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if have[name] != nil {
			continue
		}
		if err := s.listenPatiently(at, name, want[name], patient); err != nil {
			failed[name] = err
			continue
		}
		change.open(name)
	}
	return failed
}

func sameAddresses(have []netip.AddrPort, at []netip.Addr) bool {
	return len(have) == len(at) && !slices.ContainsFunc(have, func(a netip.AddrPort) bool { return !slices.Contains(at, a.Addr()) })
}

func (s *sockets) rename(from, to string) {
	for i, name := range s.names {
		if name == from {
			s.names[i] = to
		}
	}
}

// closeNamed closes all sockets of that name and removes them from the list.
func (s *sockets) closeNamed(name string) {
	for i := len(s.names) - 1; i >= 0; i-- {
		if s.names[i] == name {
			_ = unix.Close(s.descriptors[i])
			s.names, s.descriptors = slices.Delete(s.names, i, i+1), slices.Delete(s.descriptors, i, i+1)
		}
	}
}

// descriptorsOf returns the descriptors of the sockets with these names, and the name of each.
func (s *sockets) descriptorsOf(names map[string]bool) (out []string, descriptors []int) {
	for i, name := range s.names {
		if names[name] {
			out, descriptors = append(out, name), append(descriptors, s.descriptors[i])
		}
	}
	return out, descriptors
}

// failedSites returns the problems of ports that cannot be opened, by the keys of their sites.
func failedSites(failed map[string]error) map[string]string {
	out := map[string]string{}
	for name, err := range failed {
		site, _, _ := strings.Cut(name, "/")
		out[table.SiteKey(site)] = fmt.Sprintf("the node does not serve it: %v; if another program has the port, stop it or make it "+
			"listen on another port", err)
	}
	return out
}
