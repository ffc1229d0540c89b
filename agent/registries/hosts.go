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
// One with an entry of its own has a file, too, where other registries have the TLS settings of the entry for any host.
func (c *Config) files(relay *Relay) []file {
	var out []file
	for _, name := range slices.Sorted(maps.Keys(c.Mirrors)) {
		out = append(out, file{folder(name), c.hostsTOML(name, name, relay)})
	}
	for _, name := range slices.Sorted(maps.Keys(c.Configs)) {
		_, done := c.Mirrors[name]
		if needed := c.Configs[name].TLS != nil || c.Configs[anyRegistry].TLS != nil; !done && needed {
			out = append(out, file{folder(name), c.hostsTOML(name, anyRegistry, relay)})
		}
	}
	return out
}

// folder returns the folder of a registry's file.
func folder(registry string) string {
	if registry == anyRegistry {
		return "_default"
	}
	return registry
}

// hostsTOML describes one registry: the mirrors of the given entry in order, then the registry itself. Where the
// registry itself is not to be asked, the last mirror stands in its place.
func (c *Config) hostsTOML(name, entry string, relay *Relay) string {
	mirrors := c.Mirrors[entry].Endpoints
	var b strings.Builder
	b.WriteString("# Written by coracle from registries.yaml at each start.\n")
	switch last := len(mirrors) - 1; {
	case c.DisableDefaultEndpoint && last >= 0:
		fmt.Fprintf(&b, "server = %s\n%s", strconv.Quote(c.target(entry, mirrors[last], relay)), c.mirror(entry, mirrors[last], ""))
		mirrors = mirrors[:last]
	case name == anyRegistry:
		b.WriteString(c.tls(name, ""))
	default:
		server := defaultServer(name)
		fmt.Fprintf(&b, "server = %s\n", strconv.Quote(server.String()))
		b.WriteString(c.tls(server.Host, ""))
	}
	for _, e := range mirrors {
		fmt.Fprintf(&b, "\n[host.%s]\n%s", strconv.Quote(c.target(entry, e, relay)), c.mirror(entry, e, "  "))
	}
	return b.String()
}

// relayed reports whether the mirrors of an entry are asked by the relay: those with rewrites, and the mirrors of any
// registry where any registry has credentials. These come with the pull, for the image's registry alone (AuthOfImage).
func (c *Config) relayed(entry string) bool {
	return len(c.Mirrors[entry].Rewrites) > 0 || entry == anyRegistry && c.Configs[anyRegistry].Auth != nil
}

// target returns the URL at which containerd asks a mirror.
func (c *Config) target(entry, endpoint string, relay *Relay) string {
	if c.relayed(entry) {
		return relay.url(entry, endpoint)
	}
	u, _ := endpointURL(endpoint) // check has rejected those that are no URLs
	return u.String()
}

// mirror returns the lines of hosts.toml for one mirror.
func (c *Config) mirror(entry, endpoint, indent string) string {
	// With override_path the URL's path is the whole path; without it containerd would add /v2.
	text := indent + "capabilities = [\"pull\", \"resolve\"]\n" + indent + "override_path = true\n"
	if u, err := endpointURL(endpoint); err == nil && !c.relayed(entry) {
		text += c.tls(u.Host, indent)
	}
	return text
}

// defaultServer returns a registry's URL. Docker Hub's name is not its address.
func defaultServer(name string) *url.URL {
	if name == "docker.io" {
		name = hubHost
	}
	return &url.URL{Scheme: "https", Host: name, Path: "/v2"}
}

// tls returns the lines of hosts.toml with the TLS settings of a host, or "" if it has none.
func (c *Config) tls(host, indent string) string {
	t := c.host(host).TLS
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
