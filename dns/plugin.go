// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"slices"
	"sync"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/kubernetes"

	// The plugins that corefile names, and hosts, rewrite and log for the operator's own configuration.
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/rewrite"
)

// directive names our variant of CoreDNS's kubernetes plugin. The plugin's own setup takes over the process's klog, and
// watches the API itself. This variant does neither.
const directive = "coracle"

// register prepares CoreDNS, whose registry is global, for being embedded.
var register = sync.OnceValue(func() error {
	caddy.Quiet, dnsserver.Quiet = true, true
	i := slices.Index(dnsserver.Directives, "kubernetes")
	if i < 0 {
		return fmt.Errorf("dns: this CoreDNS has no kubernetes plugin")
	}
	dnsserver.Directives = slices.Insert(slices.Clone(dnsserver.Directives), i, directive)
	plugin.Register(directive, setup)
	first := slices.Index(dnsserver.Directives, "cache") // before all plugins that answer
	if first < 0 {
		return fmt.Errorf("dns: this CoreDNS has no cache plugin")
	}
	dnsserver.Directives = slices.Insert(dnsserver.Directives, first, clientsDirective)
	plugin.Register(clientsDirective, setupClients)
	dnsserver.Directives = append(dnsserver.Directives, connectionsDirective)
	plugin.Register(connectionsDirective, setupConnections)
	showMetrics()
	return nil
})

// clusters has the cluster of each Server of this process by its id. CoreDNS' registry belongs to the process, and a
// plugin's setup gets nothing except the arguments of its directive.
var clusters sync.Map // of string and *cluster

// setup sets up the kubernetes plugin with a Server's cluster. The directive's first argument is the Server's id. The
// others are the plugin's.
func setup(c *caddy.Controller) error {
	c.Next()
	if !c.NextArg() {
		return plugin.Error(directive, c.ArgErr())
	}
	known, ok := clusters.Load(c.Val())
	if !ok {
		return plugin.Error(directive, c.Errf("no cluster's DNS of this process is called %s", c.Val()))
	}
	k, err := kubernetes.ParseStanza(c)
	if err != nil {
		return plugin.Error(directive, err)
	}
	names, ok := known.(*cluster)
	if !ok {
		return plugin.Error(directive, c.Errf("%T is no cluster", known))
	}
	k.APIConn = names
	c.OnStartup(names.wait)
	dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
		k.Next = next
		return k
	})
	return nil
}
