// SPDX-License-Identifier: Apache-2.0

package resolvconf

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"
)

// askTimeout is how long Wildcards waits for one resolver.
const askTimeout = 2 * time.Second

// File returns the file that pods inherit: the given one, or else the host's.
func File(given string) string {
	if given != "" {
		return given
	}
	return Choose(HostFiles)
}

// Search returns the search list of a resolv.conf(5). The last of its lines counts.
func Search(path string) ([]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the host's resolvers: %w", err)
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		if words := strings.Fields(line); len(words) > 0 && (words[0] == "search" || words[0] == "domain") {
			out = words[1:]
		}
	}
	return out, nil
}

// Wildcards returns the domains of a file's search list below which every name exists. It looks up a made-up name in
// each, at the first resolver of the file that replies. An error means that no resolver replied. Pods inherit the
// search list, and try it before a name as it is: below such a domain they find another machine under each outside
// name.
func Wildcards(ctx context.Context, path string) ([]string, error) {
	domains, err := Search(path)
	if err != nil || len(domains) == 0 {
		return nil, err
	}
	servers, err := Servers(path)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, d := range domains {
		if d = strings.Trim(d, "."); d == "" {
			continue
		}
		there, err := exists(ctx, servers, strings.ToLower(rand.Text())+"."+d+".")
		if err != nil {
			return found, err
		}
		if there {
			found = append(found, d)
		}
	}
	return found, nil
}

// exists looks up the addresses of a name.
func exists(ctx context.Context, servers []netip.Addr, name string) (bool, error) {
	err := fmt.Errorf("no resolver is named")
	for _, s := range servers {
		r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, netip.AddrPortFrom(s, 53).String())
		}}
		asked, cancel := context.WithTimeout(ctx, askTimeout)
		_, err = r.LookupNetIP(asked, "ip", name)
		cancel()
		var dns *net.DNSError
		if err == nil || errors.As(err, &dns) && dns.IsNotFound {
			return err == nil, nil
		}
	}
	return false, err
}
