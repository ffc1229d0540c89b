// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

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

// directive names our entry to CoreDNS's kubernetes plugin. The plugin's own takes over the process's klog whenever it
// is set up; this one is the same without that.
const directive = "coracle"

// register makes CoreDNS, whose registry is global, ready for being embedded.
var register = sync.OnceValue(func() error {
	caddy.Quiet, dnsserver.Quiet = true, true
	i := slices.Index(dnsserver.Directives, "kubernetes")
	if i < 0 {
		return fmt.Errorf("dns: this CoreDNS has no kubernetes plugin")
	}
	dnsserver.Directives = slices.Insert(slices.Clone(dnsserver.Directives), i, directive)
	plugin.Register(directive, setup)
	first := slices.Index(dnsserver.Directives, "cache") // before all that answers
	if first < 0 {
		return fmt.Errorf("dns: this CoreDNS has no cache plugin")
	}
	dnsserver.Directives = slices.Insert(dnsserver.Directives, first, clientsDirective)
	plugin.Register(clientsDirective, setupClients)
	showMetrics()
	return nil
})

func setup(c *caddy.Controller) error {
	c.Next()
	k, err := kubernetes.ParseStanza(c)
	if err != nil {
		return plugin.Error(directive, err)
	}
	k.ClientConfig = protobufConfig{k.ClientConfig}
	onStart, onShutdown, err := k.InitKubeCache(context.Background())
	if err != nil {
		return plugin.Error(directive, err)
	}
	c.OnStartup(onStart)
	c.OnShutdown(onShutdown)
	dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
		k.Next = next
		return k
	})
	return nil
}

// protobufConfig lists and watches with less work than JSON.
type protobufConfig struct{ clientConfig }

// clientConfig renames the interface: embedded under its own name it would hide its method.
type clientConfig interface{ clientcmd.ClientConfig }

func (p protobufConfig) ClientConfig() (*rest.Config, error) {
	config, err := p.clientConfig.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("reading the network kubeconfig: %w", err)
	}
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.UserAgent = "coracle-dns"
	return config, nil
}
