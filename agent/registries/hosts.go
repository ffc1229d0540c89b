// SPDX-License-Identifier: Apache-2.0

package registries

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// file is one hosts.toml (containerd's docs/hosts.md) and the folder of the registry it is for.
type file struct{ dir, toml string }

// files returns the whole configuration. A registry has a file when it has mirrors or its own host needs TLS settings.
func (c *Config) files(relay *Relay) []file {
	var out []file
	for _, name := range slices.Sorted(maps.Keys(c.Mirrors)) {
		dir := name
		if name == anyRegistry {
			dir = "_default"
		}
		out = append(out, file{dir, c.hostsTOML(name, name, relay)})
	}
	for _, name := range slices.Sorted(maps.Keys(c.Configs)) {
		if _, done := c.Mirrors[name]; !done && c.Configs[name].TLS != nil {
			out = append(out, file{name, c.hostsTOML(name, anyRegistry, relay)})
		}
	}
	return out
}

// hostsTOML describes one registry: the mirrors of the given entry in order, then the registry itself.
func (c *Config) hostsTOML(name, entry string, relay *Relay) string {
	m := c.Mirrors[entry]
	var b strings.Builder
	b.WriteString("# Written by coracle from registries.yaml at each start.\n")
	if name != anyRegistry {
		server := defaultServer(name)
		fmt.Fprintf(&b, "server = %s\n", strconv.Quote(server.String()))
		b.WriteString(c.tls(server.Host, ""))
	}
	for _, e := range m.Endpoints {
		u, err := endpointURL(e)
		if err != nil {
			continue // check has rejected it
		}
		target := u.String()
		if len(m.Rewrites) > 0 {
			target = relay.url(entry, e)
		}
		fmt.Fprintf(&b, "\n[host.%s]\n  capabilities = [\"pull\", \"resolve\"]\n", strconv.Quote(target))
		// With this the URL's path is the whole path; without it containerd would add /v2.
		b.WriteString("  override_path = true\n")
		if len(m.Rewrites) == 0 {
			b.WriteString(c.tls(u.Host, "  "))
		}
	}
	return b.String()
}

// defaultServer returns a registry's URL. Docker Hub's name is not its address.
func defaultServer(name string) *url.URL {
	if name == "docker.io" {
		name = hubHost
	}
	return &url.URL{Scheme: "https", Host: name, Path: "/v2"}
}

// tls returns the TLS section for one host.
func (c *Config) tls(host, indent string) string {
	t := c.Configs[host].TLS
	if t == nil && host == hubHost {
		t = c.Configs["docker.io"].TLS
	}
	if t == nil {
		return ""
	}
	var b strings.Builder
	if t.CAFile != "" {
		fmt.Fprintf(&b, "%sca = [%s]\n", indent, strconv.Quote(t.CAFile))
	}
	if t.CertFile != "" {
		fmt.Fprintf(&b, "%sclient = [[%s, %s]]\n", indent, strconv.Quote(t.CertFile), strconv.Quote(t.KeyFile))
	}
	if t.InsecureSkipVerify {
		fmt.Fprintf(&b, "%sskip_verify = true\n", indent)
	}
	return b.String()
}
