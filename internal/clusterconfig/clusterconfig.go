// SPDX-License-Identifier: Apache-2.0

// Package clusterconfig holds the settings that all machines of a cluster have to agree on. Servers and agents build on
// the same ones; an agent gets them from the server that it joins. It reads no flags and no files.
package clusterconfig

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Settings are the cluster's.
type Settings struct {
	// PodCIDRs and ServiceCIDRs have one network, or one of each family in the same order.
	PodCIDRs     []netip.Prefix `json:"podCIDRs"`
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs"`
	// DNS is the address of the Service of the cluster's DNS; the zero Addr where that is disabled.
	DNS netip.Addr `json:"dns,omitzero"`
	// Domain is cluster.local or what an operator chose.
	Domain string `json:"domain"`
	// NoServiceProxy leaves Services to another proxy that the operator installs on every node.
	NoServiceProxy bool `json:"noServiceProxy,omitempty"`
	// NoNetworkPolicy leaves NetworkPolicies to something that the operator installs, or to nothing.
	NoNetworkPolicy bool `json:"noNetworkPolicy,omitempty"`
	// NoLocalStorage leaves claims of the provisioner rancher.io/local-path to something that the operator installs, or
	// to nothing.
	NoLocalStorage bool `json:"noLocalStorage,omitempty"`
	// NetworkBackend is how packets reach the pods of other nodes; empty for the default (Backend).
	NetworkBackend string `json:"networkBackend,omitempty"`
	// Balancer says what Services of type LoadBalancer get.
	Balancer Balancer `json:"balancer,omitzero"`
	// NoMetrics leaves metrics.k8s.io to something that the operator installs, or to nothing.
	NoMetrics bool `json:"noMetrics,omitempty"`
	// NoHelm leaves HelmCharts to another controller, or to none; NoIngress does so with Ingresses, and NoGateway with
	// the Gateway API.
	NoHelm    bool `json:"noHelm,omitempty"`
	NoIngress bool `json:"noIngress,omitempty"`
	NoGateway bool `json:"noGateway,omitempty"`
	// NoConsole says that the cluster has no web console.
	NoConsole bool `json:"noConsole,omitempty"`
	// NoManifests leaves the servers' folders of manifests alone.
	NoManifests bool `json:"noManifests,omitempty"`
	// TolerationSeconds is for how long pods stay on a node that is not ready or not heard of, unless they say
	// something else; 0 for DefaultTolerationSeconds.
	TolerationSeconds int `json:"tolerationSeconds,omitempty"`
	// VIPs are the cluster's virtual addresses when a server joins, at most one of each family. They may change later,
	// see VIPConfigMap.
	VIPs []netip.Addr `json:"vips,omitempty"`
}

// Balancer is what a cluster says of Services of type LoadBalancer.
type Balancer struct {
	// Disabled leaves them to another load balancer.
	Disabled bool `json:"disabled,omitempty"`
	// Pool are the addresses of the pool that is no object of the API, as internal/loadbalancer reads them.
	Pool []string `json:"pool,omitempty"`
	// ReservedPorts are those that no Service gets at nodes' addresses, as internal/loadbalancer reads them.
	ReservedPorts []string `json:"reservedPorts,omitempty"`
}

// DefaultTolerationSeconds is longer than a machine takes to start again, so that a restart moves no pods
// (docs/adr/0065-death-of-a-node-and-unreachable-endpoints.md). Upstream's are 300.
const DefaultTolerationSeconds = 60

// Toleration is TolerationSeconds or the default.
func (s Settings) Toleration() int { return cmp.Or(s.TolerationSeconds, DefaultTolerationSeconds) }

// The times by which upstream's controllers learn from the API alone that a node has died. A server that leads knows it
// earlier and by itself, from the connections that nodes keep open (server/liveness); the lease is there for clients
// that read it.
const (
	// LeaseDuration is how long a node's lease lasts. A kubelet renews it four times as often
	// (k8s.io/kubernetes/pkg/kubelet: nodeLeaseRenewIntervalFraction), each time with a write to the disks of a
	// majority of the servers. Every 2.5 minutes keeps the idle disk quiet; upstream's lease of 40 s is 8,640 writes a
	// day for each node (docs/adr/0040-idle-cost.md, docs/adr/0065-death-of-a-node-and-unreachable-endpoints.md).
	LeaseDuration = 10 * time.Minute
	// GracePeriod is how long a node may be silent before it counts as lost (node-monitor-grace-period of the
	// controllers). It has to be longer than LeaseDuration.
	GracePeriod = 12 * time.Minute
)

// DefaultDomain is the domain of clusters whose operator chose none.
const DefaultDomain = "cluster.local"

// Validate finds settings with which no cluster works.
func (s Settings) Validate() error {
	var errs []error
	for name, nets := range map[string][]netip.Prefix{"pods": s.PodCIDRs, "Services": s.ServiceCIDRs} {
		switch {
		case len(nets) < 1 || len(nets) > 2:
			errs = append(errs, fmt.Errorf("%d networks for %s, want one, or one of each family", len(nets), name))
		case len(nets) == 2 && nets[0].Addr().Is4() == nets[1].Addr().Is4():
			errs = append(errs, fmt.Errorf("the two networks for %s, %s and %s, are of one family", name, nets[0], nets[1]))
		}
	}
	if s.Domain == "" {
		errs = append(errs, errors.New("no cluster domain"))
	}
	if !slices.Contains(NetworkBackends, s.Backend()) {
		errs = append(errs, fmt.Errorf("this version of coracle knows no way between nodes that is called %q", s.NetworkBackend))
	}
	if s.TolerationSeconds < 0 {
		errs = append(errs, fmt.Errorf("pods cannot stay on a lost node for %d seconds", s.TolerationSeconds))
	}
	return errors.Join(errs...)
}

// APIAddresses are the addresses of the kubernetes Service: the first of each of the Services' networks.
func (s Settings) APIAddresses() ([]netip.Addr, error) {
	var out []netip.Addr
	for _, n := range s.ServiceCIDRs {
		first := n.Masked().Addr().Next()
		if !n.Contains(first) {
			return nil, fmt.Errorf("the service network %s is too small", n)
		}
		out = append(out, first)
	}
	return out, nil
}

// FlagValue writes networks as upstream's flags take them.
func FlagValue(nets []netip.Prefix) string { return strings.Join(Strings(nets), ",") }

// Strings writes each network.
func Strings(nets []netip.Prefix) []string {
	out := make([]string, len(nets))
	for i, n := range nets {
		out[i] = n.String()
	}
	return out
}

const (
	// ServerIDAnnotation on a node is the name in the store of the server on its machine. Each server writes its own.
	ServerIDAnnotation = "coracle.dev/server-id"
	// LeaveAnnotation on a node says that its machine is to leave the cluster. Its value is how long its pods may take
	// to end ([ParseLeave]). A machine may write it on its own node.
	LeaveAnnotation = "coracle.dev/leave"
	// MemberFinalizer keeps a deleted node of a server until the server is no member of the store any more.
	MemberFinalizer = "coracle.dev/store-member"
)

// LoadBalancerLabel, with the value "true" on one node at least, keeps load balancers' Services to the nodes that have
// it; K3sLoadBalancerLabel is the same as k3s has it. A node has either from the administrator, or from --node-label
// when it joins.
const (
	LoadBalancerLabel    = "coracle.dev/enable-servicelb"
	K3sLoadBalancerLabel = "svccontroller.k3s.cattle.io/enablelb"
)

// OwnAddressesLabel is on a node whose agent sets the addresses itself, external ones among them, where upstream's
// kubelet expects a cloud provider to. It registers with the taint that such a provider's controller would remove, and
// the API server leaves that taint out.
const OwnAddressesLabel = "coracle.dev/own-addresses"

// MaxLeave bounds how long the pods of a node that leaves may take.
const MaxLeave = 24 * time.Hour

// ParseLeave reads the value of [LeaveAnnotation]: a duration such as 90s, between 0 and [MaxLeave].
func ParseLeave(value string) (time.Duration, error) {
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 || d > MaxLeave {
		return 0, fmt.Errorf("the annotation %s is %q: it has to be a duration between 0s and %s, such as 90s. The node stays until it is",
			LeaveAnnotation, value, MaxLeave)
	}
	return d, nil
}
