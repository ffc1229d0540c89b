// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/go-logr/logr"

	"github.com/coracle-k8s/coracle/dns"
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/netpolicy"
)

// partPolicies is the name of the status line of NetworkPolicies.
const partPolicies = "network policies"

// newPolicies returns the enforcer of NetworkPolicies. When it is disabled it removes the rules from the kernel and
// returns nil.
func newPolicies(o Options, informers *netinformers.Informers, log logr.Logger) (*netpolicy.Enforcer, error) {
	if !o.servesPolicies() {
		if err := errors.Join(netpolicy.Remove(), netpolicy.RemoveSaved(o.paths().policyRules)); err != nil {
			return nil, fmt.Errorf("agent: stop enforcing NetworkPolicies: %w", err)
		}
		return nil, nil
	}
	e, err := netpolicy.New(netpolicy.Options{Informers: informers, DNS: o.dnsForPolicies(), StateFile: o.paths().policyRules,
		Part: o.statusPart(partPolicies), Logger: log})
	if err != nil {
		return nil, fmt.Errorf("agent: set up NetworkPolicies: %w", err)
	}
	return e, nil
}

// dnsForPolicies returns the addresses at which this node's pods reach the cluster DNS: the Service's, and this node's
// own DNS server, to which the Service leads.
func (o Options) dnsForPolicies() netpolicy.DNS {
	if len(o.clusterDNS()) == 0 {
		return netpolicy.DNS{}
	}
	servers := convert.Slice(o.IPs, func(ip netip.Addr) netip.AddrPort { return netip.AddrPortFrom(ip, dns.Port) })
	return netpolicy.DNS{Servers: servers, Service: o.clusterDNS()}
}
