// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/coracle-k8s/coracle/internal/convert"
)

// apiWait is how long a start waits for the API's Services before it answers without them.
const apiWait = 2 * time.Second

// staleAfter is how long to wait for a resolver until an expired answer is used. RFC 8767 recommends at most 1.8 s.
const staleAfter = "1500ms"

// corefile returns CoreDNS's whole configuration. Answers about the cluster are not cached: they come from memory. A
// Service that has just been made must not be missing because a client asked a moment too early.
func corefile(o Options, resolvers []netip.AddrPort, extra blocks) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line(".:%d {", Port)
	line("    bind %s", joinStrings(o.Addresses))
	line("    %s", clientsLine(o))
	line("    %s", connections(o))
	// The operator's directives replace ours: each of these may occur once.
	if extra.main["errors"] == "" {
		line("    errors {")
		line(`        consolidate 5m ".*" warning show_first`)
		line("    }")
	}
	if extra.main["cache"] == "" {
		line("    cache 30 {")
		line("        success 4096")
		line("        denial 1024")
		// External names stay valid for a day when their servers do not reply (RFC 8767).
		line("        serve_stale 24h verify %s 30s", staleAfter)
		line("        disable success %s in-addr.arpa ip6.arpa", o.Domain)
		line("        disable denial %s in-addr.arpa ip6.arpa", o.Domain)
		line("    }")
	}
	if extra.main["loadbalance"] == "" {
		line("    loadbalance")
	}
	line("    %s %s %s in-addr.arpa ip6.arpa {", directive, o.id, o.Domain)
	line("        pods insecure")
	line("        fallthrough in-addr.arpa ip6.arpa")
	line("    }")
	for _, name := range slices.Sorted(maps.Keys(extra.main)) {
		b.WriteString(extra.main[name])
	}
	if len(resolvers) > 0 {
		// In the order of resolv.conf, as the host itself uses them. When all are known to be down, queries fail at
		// once.
		line("    forward . %s {", joinStrings(resolvers))
		line("        policy sequential")
		line("        max_concurrent 1000")
		line("        failfast_all_unhealthy_upstreams")
		line("    }")
	}
	line("}")
	for _, block := range extra.otherBlocks {
		b.WriteString(block)
	}
	return b.String()
}

func joinStrings[T fmt.Stringer](items []T) string {
	return strings.Join(convert.Slice(items, T.String), " ")
}
